"""The questions that a grid answers, side by side."""

from search_spaces.space import Space

_MODELS = ("bert-base", "modernbert-base")
_SIZES = (64, 256, 1024)
_RULES = ("fixed", "sqrt", "linear")

_BATCH_LR_GRID = Space(
    name="batch_lr_grid",
    question=(
        "Does a larger target batch size generalise worse, and does scaling the learning rate repair it?"
    ),
    models=_MODELS,
    target_batch_sizes=_SIZES,
    scaling_rules=_RULES,
    baselines={"target_batch_size": 64, "scaling_rule": "fixed"},
)

SPACES = (
    _BATCH_LR_GRID,
    Space(
        name="equal_steps",
        question=(
            "With as many optimizer steps at every target batch size, does a larger one generalise worse, "
            "and does scaling the learning rate repair it?"
        ),
        models=_MODELS,
        target_batch_sizes=_SIZES,
        scaling_rules=_RULES,
        budget="steps",
        baselines={"target_batch_size": 64, "scaling_rule": "fixed"},
    ),
    Space(
        name="fixed_lr",
        question="What does a larger target batch size do when the learning rate stays as it is?",
        models=_MODELS,
        target_batch_sizes=_SIZES,
        scaling_rules=("fixed",),
        baselines={"target_batch_size": 64},
    ),
    Space(
        name="linear_ablation",
        question="At target batch size 256, is four times the learning rate better than the same one?",
        models=_MODELS,
        target_batch_sizes=(256,),
        scaling_rules=("fixed", "linear"),
        baselines={"scaling_rule": "fixed"},
    ),
    _BATCH_LR_GRID.replace(
        name="seeds",
        question="Which differences between target batch sizes and scaling rules are there under any seed?",
        seeds=(1, 2, 3),
        control_seeds=6,  # the control is in most comparisons, so its seeds add most information
    ),
    Space(
        name="small_batch",
        question="Is anything gained by accumulating, or is a target batch size that fits at once as good?",
        models=_MODELS,
        target_batch_sizes=(1, 4, 16, 64, 256, 1024),
        # One rule: each further one doubles the comparisons, and batch size 1 takes the longest. Under
        # `fixed` both ends are far from their learning rates, and `linear` is not derived for Adam.
        scaling_rules=("sqrt",),
        # 64 is the largest size that needs no accumulation; smaller and larger ones are compared with it
        baselines={"target_batch_size": 64},
    ),
    Space(
        name="sqrt_lr",
        question="What does a larger target batch size do under square-root learning-rate scaling?",
        models=_MODELS,
        target_batch_sizes=_SIZES,
        scaling_rules=("sqrt",),
        baselines={"target_batch_size": 64},
    ),
)
