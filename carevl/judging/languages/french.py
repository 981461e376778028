"""French."""

from carevl.judging.languages.base import Language

FRENCH = Language(
    labels=(r"jugement(?:\s+(?:global|final|général|d'ensemble))?", r"verdict(?:\s+final)?", r"décision\s+finale"),
    headings=("conclusion", r"(?:la\s+)?meilleure\s+réponse"),
    ratings=("note", "évaluation"),
    rankings=("classement",),
    evidence=("preuve", "justification"),
    names=(r"(?:la\s+)?réponse\s*(?:n°\s*)?{n}", r"(?:la\s+)?{nth}\s+réponse"),
    ordinals=("première", "deuxième|seconde", "troisième", "quatrième"),
    is_=("est", "semble"),
    better=("meilleure?", "préférable", "supérieure?", "l'emporte", r"la\s+meilleure"),
    more=(r"plus\s+(?:précise|exacte|complète|détaillée|correcte)",),
    worse=("pire", "inférieure?", r"moins\s+\w+"),
    equal=("égal(?:es?|ité|ement)?", "équivalentes?", r"aussi\s+bonnes?", "ni", "aucune", r"les\s+deux"),
    not_=("pas", "ne", "n'(?=est)", "jamais", "guère"),
    than=("que",),
    and_=("et", "ou"),
    because=("car", r"parce\s+que", "puisque"),
    but=("mais", "cependant", "toutefois", r"bien\s+que", r"tandis\s+que"),
    therefore=("donc", "ainsi", r"par\s+conséquent", "globalement"),
    if_=("si",),
    prefer=(r"(?:la\s+)?meilleure\s+réponse\s+est", r"je\s+(?:préfère|choisis)"),
    claims=("dit", "affirme", "prétend"),
    in_=("dans", "en", "pour"),
    fillers=("la", "le", "une?", "légèrement", "nettement", "clairement", "bien", "beaucoup"),
    points=("points?", "étoiles?"),
    out_of=("sur",),
    like=("comme", r"par\s+exemple"),
)
