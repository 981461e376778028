"""Spanish."""

from carevl.judging.languages.base import Language

SPANISH = Language(
    labels=(r"(?:juicio|veredicto|evaluación|decisión)\s+(?:general|global|final)", "veredicto"),
    headings=("conclusión", r"(?:la\s+)?mejor\s+respuesta"),
    ratings=("puntuación", "calificación", "nota"),
    rankings=("clasificación", "ranking"),
    evidence=("evidencia", "justificación"),
    names=(r"(?:la\s+)?respuesta\s*(?:n\.º\s*)?{n}", r"(?:la\s+)?{nth}\s+respuesta"),
    ordinals=("primera", "segunda", "tercera", "cuarta"),
    is_=("es", "parece"),
    better=("mejor", "superior", "preferible", "gana"),
    more=(r"más\s+(?:precisa|exacta|completa|detallada|correcta)",),
    worse=("peor", "inferior", r"menos\s+\w+"),
    equal=("igual(?:es|mente)?", "empate", "equivalentes?", "ninguna", "ambas", r"tan\s+buena"),
    not_=("no", "nunca", "tampoco"),
    than=("que",),
    and_=("y", "o"),
    because=("porque", r"ya\s+que", r"dado\s+que"),
    but=("pero", r"sin\s+embargo", "aunque", "mientras"),
    therefore=(r"por\s+lo\s+tanto", r"así\s+que", r"en\s+general", r"en\s+conclusión"),
    if_=("si",),
    prefer=(r"(?:la\s+)?mejor\s+respuesta\s+es", r"prefiero|elijo"),
    claims=("dice", "afirma"),
    in_=("en", "por"),
    fillers=("la", "el", "una?", "ligeramente", "claramente", "mucho", "algo"),
    points=("puntos?", "estrellas?"),
    out_of=("de", "sobre"),
    like=("como", r"por\s+ejemplo"),
)
