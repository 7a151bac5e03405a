"""Ways to come by tasks (they have `propose`) and to have them answered (they have `flow`)."""

from __future__ import annotations

STRATEGIES = {
    "answer": "distill.collect.strategies.answer:Answer",
    "best_of": "distill.collect.strategies.best_of:BestOf",
    "explanations": "distill.collect.strategies.explanations:Explanations",
    "given": "distill.collect.strategies.given:Given",
    "instances": "distill.collect.strategies.instances:Instances",
    "self_chat": "distill.collect.strategies.self_chat:SelfChat",
    "user_simulator": "distill.collect.strategies.user_simulator:UserSimulator",
    "self_instruct": "distill.expand.strategies.self_instruct:SelfInstruct",
    "alpaca": "distill.expand.strategies.alpaca:Alpaca",
    "attributes": "distill.expand.strategies.attributes:Attributes",
    "evol_instruct": "distill.expand.strategies.evol_instruct:EvolInstruct",
    "magpie": "distill.expand.strategies.magpie:Magpie",
    "topics": "distill.expand.strategies.topics:Topics",
}
