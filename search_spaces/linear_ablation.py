from search_spaces.space import Space

SPACE = Space(
    name="linear_ablation",
    question="At target batch size 256, is four times the learning rate better than the same one?",
    models=("bert-base", "modernbert-base"),
    target_batch_sizes=(256,),
    scaling_rules=("fixed", "linear"),
    baselines={"scaling_rule": "fixed"},
)
