"""Registry of strategies that grow tasks from seeds (`propose`, `admit`)."""

STRATEGIES = {
    "self_instruct": "distill.expand.strategies.self_instruct:SelfInstruct",
    "alpaca": "distill.expand.strategies.alpaca:Alpaca",
    "attributes": "distill.expand.strategies.attributes:Attributes",
    "evol_instruct": "distill.expand.strategies.evol_instruct:EvolInstruct",
    "magpie": "distill.expand.strategies.magpie:Magpie",
    "topics": "distill.expand.strategies.topics:Topics",
}
