"""German."""

from carevl.judging.languages.base import Language

GERMAN = Language(
    labels=(
        r"(?:gesamt|end|schluss)(?:urteil|bewertung|fazit|note)",
        r"(?:abschließendes|endgültiges|mein|das)\s+urteil",
        "urteil",
    ),
    headings=("fazit", r"bessere\s+antwort", "sieger", "gewinner"),
    ratings=("bewertung", "note", "punktzahl"),
    rankings=("rangfolge", "reihenfolge", "rangliste"),
    evidence=("begründung", "beleg"),
    names=(r"(?:die\s+)?antwort\s*(?:nr\.\s*)?{n}", r"(?:die\s+)?{nth}\s+antwort"),
    ordinals=("erste", "zweite", "dritte", "vierte"),
    is_=("ist", "wirkt", "scheint"),
    better=("besser", "überlegen", "gewinnt", r"am\s+besten", r"die\s+bessere(?:\s+antwort)?"),
    more=("genauer", "vollständiger", "ausführlicher"),
    worse=("schlechter", "unterlegen"),
    equal=("gleich(?:wertig|gut)?", "unentschieden", "beide", r"keine(?:\s+der\s+beiden)?", "weder"),
    not_=("nicht", "kein", "nie", "kaum"),
    than=("als",),
    and_=("und", "oder"),
    because=("weil", "da", "denn"),
    but=("aber", "jedoch", "obwohl", "während"),
    therefore=("daher", "deshalb", "also", "somit", "insgesamt", "folglich"),
    if_=("wenn", "falls", "ob"),
    claims=("sagt", "behauptet", "schreibt"),
    prefer=(r"(?:die\s+)?bessere\s+antwort\s+ist", r"ich\s+(?:bevorzuge|wähle)"),
    in_=("in", "bei", "mit"),
    fillers=("die", "der", "das", "etwas", "deutlich", "klar", "viel", "eine"),
    points=("punkte?n?", "sterne?"),
    out_of=("von",),
    like=("wie", "etwa", r"zum\s+beispiel"),
)
