from search_spaces.space import Space

SPACE = Space(
    name="fixed_lr",
    question="What does a larger target batch size do when the learning rate stays as it is?",
    models=("bert-base", "modernbert-base"),
    target_batch_sizes=(64, 256, 1024),
    scaling_rules=("fixed",),
    baselines={"target_batch_size": 64},
)
