"""Registry of strategies that answer tasks (`flow`)."""

STRATEGIES = {
    "answer": "distill.collect.strategies.answer:Answer",
    "best_of": "distill.collect.strategies.best_of:BestOf",
    "explanations": "distill.collect.strategies.explanations:Explanations",
    "given": "distill.collect.strategies.given:Given",
    "instances": "distill.collect.strategies.instances:Instances",
    "pairs": "distill.collect.strategies.pairs:Pairs",
    "self_chat": "distill.collect.strategies.self_chat:SelfChat",
    "user_simulator": "distill.collect.strategies.user_simulator:UserSimulator",
}
