from search_spaces.search_space import Choice, LogUniform, SearchSpace, Uniform

SPACE = SearchSpace(
    name="best_config",
    question="Which configuration has the highest validation accuracy?",
    parameters={
        "model": Choice(("bert-base", "modernbert-base")),
        "target_batch_size": Choice((16, 32, 64, 128, 256, 1024)),
        "base_lr": LogUniform(1e-5, 5e-4),
        "warmup_ratio": Uniform(0.0, 0.2),
        "head_dropout": Uniform(0.0, 0.3),
        "weight_decay": Uniform(0.0, 0.1),
    },
    # the learning rate itself is searched, so no rule scales it
    settings={"scaling_rule": "fixed", "optimizer": "adamw", "scheduler": "linear"},
)
