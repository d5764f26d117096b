"""The plain numpy forward: what every engine is compared with, and calibration measures with."""
