from search_spaces.space import Space

SPACE = Space(
    name="equal_steps",
    question=(
        "With as many optimizer steps at every target batch size, does a larger one generalise worse, and "
        "does scaling the learning rate repair it?"
    ),
    models=("bert-base", "modernbert-base"),
    target_batch_sizes=(64, 256, 1024),
    scaling_rules=("fixed", "sqrt", "linear"),
    budget="steps",
    baselines={"target_batch_size": 64, "scaling_rule": "fixed"},
)
