"""Scripts whose words stand without spaces: Thai, Japanese, Chinese. There each character counts as a word."""

UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Their characters, as a class of a regular expression has them between its brackets."""
