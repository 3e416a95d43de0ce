"""Short names that a configuration may use instead of `module:function`."""

from __future__ import annotations

OPTIMIZERS = {
    "adamw": "expunge.optim.adamw:adamw",
    "adamw_8bit": "expunge.optim.adamw:adamw_8bit",
    "paged_adamw": "expunge.optim.adamw:paged_adamw",
    "paged_adamw_8bit": "expunge.optim.adamw:paged_adamw_8bit",
    "sgd": "expunge.optim.sgd:sgd",
    "sophia": "expunge.optim.sophia:sophia",
}
RULES = {"sam": "expunge.optim.sam:SAM", "random_smoothing": "expunge.optim.random_smoothing:RandomSmoothing"}
SCORES = {
    "wagle": "expunge.optim.scores:wagle",
    "magnitude": "expunge.optim.scores:magnitude",
    "forget_gradient": "expunge.optim.scores:forget_gradient",
    "snip": "expunge.optim.scores:snip",
    "wanda": "expunge.optim.scores:wanda",
    "random": "expunge.optim.scores:uniform",
}
RETAIN_TERMS = {name: f"expunge.methods.retain:{name}" for name in ("nll", "kl", "embed_diff")}
SCHEDULES = {
    name: f"expunge.methods.schedule:{name}" for name in ("constant", "ramp", "switch", "reroute", "fade")
}
COMBINATIONS = {"gru": "expunge.methods.gru:GRU"}
COLLECTORS = {
    "tokens": "expunge.evaluation.collect.tokens:Tokens",
    "generations": "expunge.evaluation.collect.generations:Generations",
    "gradnorms": "expunge.evaluation.collect.gradnorms:GradientNorms",
    "choices": "expunge.evaluation.collect.choices:Choices",
    "harness": "expunge.evaluation.collect.harness:Harness",
}
VIEWS = {
    "answers": "expunge.evaluation.view_specs:ViewSpec",
    "documents": "expunge.evaluation.text_views:documents",
    "passages": "expunge.evaluation.text_views:passages",
    "prompts": "expunge.evaluation.text_views:prompts",
    "choices": "expunge.evaluation.choice_views:choices",
    "harness": "expunge.evaluation.harness_views:harness_rows",
}
SCORERS = {name: f"expunge.evaluation.scorers:{name}" for name in ("profanity", "vader")}
# Class names that open-unlearning's files give as dataset handlers.
DATASETS = {
    "QADataset": "expunge.data.datasets:qa",
    "QAwithIdkDataset": "expunge.data.datasets:qa_idk",
    "QAwithAlternateDataset": "expunge.data.datasets:qa_alternate",
    "PretrainingDataset": "expunge.data.datasets:text",
}
