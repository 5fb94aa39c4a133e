from search_spaces.space import Space

SPACE = Space(
    name="batch_lr_grid",
    question=(
        "Does a larger target batch size generalise worse, and does scaling the learning rate repair it?"
    ),
    models=("bert-base", "modernbert-base"),
    target_batch_sizes=(64, 256, 1024),
    scaling_rules=("fixed", "sqrt", "linear"),
    baselines={"target_batch_size": 64, "scaling_rule": "fixed"},
)
