"""Turns a folder of labelled images into one model file that proves itself. Entry point: `python -m training`."""
