from search_spaces.batch_lr_grid import SPACE as GRID

SPACE = GRID.replace(
    name="seeds",
    question="Which differences between target batch sizes and scaling rules are there under any seed?",
    seeds=(1, 2, 3),
    control_seeds=6,  # it is in most comparisons, so its seeds tell most
)
