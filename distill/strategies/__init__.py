"""Ways to come by tasks (they have `propose`) and to have them answered (they have `flow`)."""

from __future__ import annotations

STRATEGIES = {
    "answer": "distill.strategies.answer:Answer",
    "best_of": "distill.strategies.best_of:BestOf",
    "explanations": "distill.strategies.explanations:Explanations",
    "given": "distill.strategies.given:Given",
    "instances": "distill.strategies.instances:Instances",
    "self_chat": "distill.strategies.self_chat:SelfChat",
    "user_simulator": "distill.strategies.user_simulator:UserSimulator",
    "self_instruct": "distill.strategies.self_instruct:SelfInstruct",
    "alpaca": "distill.strategies.alpaca:Alpaca",
    "attributes": "distill.strategies.attributes:Attributes",
    "evol_instruct": "distill.strategies.evol_instruct:EvolInstruct",
    "magpie": "distill.strategies.magpie:Magpie",
    "topics": "distill.strategies.topics:Topics",
}
