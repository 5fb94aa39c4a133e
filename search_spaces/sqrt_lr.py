from search_spaces.space import Space

SPACE = Space(
    name="sqrt_lr",
    question="What does a larger target batch size do under square-root learning-rate scaling?",
    models=("bert-base", "modernbert-base"),
    target_batch_sizes=(64, 256, 1024),
    scaling_rules=("sqrt",),
    baselines={"target_batch_size": 64},
)
