"""The words of verdicts, by language: what `read_verdict` knows of English, Chinese and others.

Every field is a tuple of words, or of regular expressions where one word has several forms; case does not matter. A
language of your own is one more entry, and fields that it leaves out know nothing:

```python
from carevl.judging.languages import LANGUAGES, Language

LANGUAGES["it"] = Language(labels=("giudizio complessivo", "verdetto"), names=("risposta {n}",), better=("migliore",))
```

Judges in actors of a run read with the entries that are made where they import them.
"""

from carevl.judging.languages.base import Language
from carevl.judging.languages.chinese import CHINESE
from carevl.judging.languages.english import ENGLISH
from carevl.judging.languages.french import FRENCH
from carevl.judging.languages.german import GERMAN
from carevl.judging.languages.japanese import JAPANESE
from carevl.judging.languages.spanish import SPANISH

LANGUAGES: dict[str, Language] = {
    "en": ENGLISH,
    "zh": CHINESE,
    "de": GERMAN,
    "fr": FRENCH,
    "es": SPANISH,
    "ja": JAPANESE,
}
"""By ISO 639-1 code. All of them are known at once: a judge may reason in one and decide in another."""

__all__ = ["LANGUAGES", "Language"]
