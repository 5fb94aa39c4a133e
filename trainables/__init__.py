"""ONE trial: runs without Ray and without MLflow, except the one Ray class."""
