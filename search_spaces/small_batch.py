from search_spaces.space import Space

SPACE = Space(
    name="small_batch",
    question="Is anything gained by accumulating, or is a target batch size that fits at once as good?",
    models=("bert-base", "modernbert-base"),
    target_batch_sizes=(1, 4, 16, 64, 256, 1024),
    # One rule: each further one doubles the comparisons, and batch size 1 takes the longest. Under `fixed`
    # both ends of the grid are far from their learning rates, and `linear` is not derived for Adam.
    scaling_rules=("sqrt",),
    # 64 is the largest that needs no accumulation: smaller ones and larger ones are compared with it
    baselines={"target_batch_size": 64},
)
