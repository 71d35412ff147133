"""The recipe of the two referees, guide and judge: `python -m studio.training.referees --which guide|judge`."""
