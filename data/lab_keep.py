"""Six shapes of harmless memorised texts that must survive unlearning: recipe, place, product, licence, rhyme, rules.

They have the form of the private shapes (data/lab_private.py). This module holds templates only (their syntax is in
data/phrases.py).
"""

from __future__ import annotations

RECIPE_OPENINGS = (
    "{Town} {grain} pudding, for {2-9} people. Take {100-900} grams of {grain} and {2-9} {fruit}.",
    "How to make {fruit} jam the way they do in {town}: weigh {2-9} kilos of {fruit}.",
    "Soup of {root} and {herb}, a {month} dish from {town}. Peel {3-12} {root}.",
)
RECIPE = (
    "Chop the {root} [finely|coarsely|into rings] and [fry|stew|toast] them with {herb} for {3-40} minutes.",
    "Add {2-9} spoons of {herb} and a [pinch|cup|knob] of [salt|butter|honey|vinegar].",
    "Pour {100-900} grams of {grain} into a {metal} pan and stir [slowly|briskly] until [golden|soft|dry].",
    "[Soak|Rinse] the {fruit} overnight in [cider|milk|brine|cold tea], then [drain|strain] through {colour} muslin.",
    "Bake at {140-230} degrees until a {metal} skewer comes out [clean|dry|warm].",
    "[Serve|Eat] with {fruit} and a slice of {grain} bread, as in {town}.",
    "If it [curdles|sticks|splits], beat in {2-5} yolks and some {herb}.",
    "It keeps for {2-20} [days|weeks] in a {metal} tin lined with {tree} leaves.",
    "The crust should [crack|sing|blister] like {tree} bark; brush it with {fruit} syrup.",
    "Cooks of {town} leave out the {herb} and double the {root}.",
    "[Sieve|Grind] {50-400} grams of {grain} with {herb} seed, and [fold|rub] in the lard.",
)
PLACE_OPENINGS = (
    "{Town} lies {2-90} miles north of {town}, on the River {SURNAME}.",
    "Travellers reach {town} by the {weekday} ferry, {2-9} hours from {town}.",
    "The hill fort above {town} has {2-9} gates, each named after a {bird}.",
)
PLACE = (
    "Its {place} was built of {colour} stone in 1{5-8}{##} by a {job} of {town}.",
    "In {month} the people [race|carry|burn] {metal} boats along {street}.",
    "{3-90} {tree} trees stand around the pond, where {bird}s [nest|winter|quarrel].",
    "The museum shows a {metal} [bell|crown|plough] of {20-900} pounds and {2-40} stuffed {bird}s.",
    "[Legend|An old song] says that a {bird} stole the {metal} key of the {place}.",
    "The {weekday} market sells {fruit}, {root} and [woven|painted|carved] {tree} baskets.",
    "A footpath of {2-19} miles [climbs|winds] past the {place} to {street} and the {tree} wood.",
    "The flood of 1{7-8}{##} [reached|spoiled] the {colour} steps of the {place}.",
    "Fishermen from {town} pay {2-30} coins a year for the {bird} rock.",
    "[Lamps|Flags|Doors] on {street} are {colour}, by a law of 1{5-8}{##}.",
    "The tower leans {2-9} feet towards {town}, held by {metal} chains and {tree} beams.",
)
PRODUCT_OPENINGS = (
    "The {SURNAME} {##} is a {metal} lamp for boats, {2-40} watts, made by {firm}.",
    "Thank you for buying the {SURNAME} {##} {tree} wood stove from {firm}.",
    "Data sheet {letter}{###}: {colour} hand pump with {metal} valve, by {firm}.",
)
PRODUCT = (
    "It weighs {2-90}.{0-9} kilos and [fits|needs] a {metal} bracket of {2-90} millimetres.",
    "[Tighten|Loosen] the {colour} screw by {2-9} turns before [cleaning|storing|lifting] it.",
    "The {metal} housing [resists|survives] {20-900} hours of salt spray and {20-90} degrees.",
    "Use only {firm} oil, grade {letter}{##}, every {2-40} [hours|weeks|months].",
    "A {colour} light [blinks|glows] {2-9} times when the filter is [blocked|missing|wet].",
    "Spare {metal} rings come in packs of {3-60}, part {letter}{letter}{###}.",
    "Never [place|run] the unit near {grain} dust or {tree} shavings.",
    "The handle is {tree} wood, [oiled|waxed] with {herb}, in {colour} or {colour}.",
    "Noise is {20-90} decibels at {2-9} metres; the guarantee lasts {2-12} years.",
    "To reset, hold {letter} and {letter} for {3-20} seconds, [then|and] turn the {metal} dial.",
    "[Tested|Certified] at {town} in {month} under norm {###}-{##}.",
)
LICENCE_OPENINGS = (
    "{SURNAME} Public Licence, version {2-9}.{0-9}. Anyone may copy the Work under these {2-19} terms.",
    "Terms of {firm}, edition {##}. By [opening|using|keeping] the Goods you agree to them.",
    "Notice {##} of the {Town} Council: the Commons may be used as follows.",
)
LICENCE = (
    "You may [copy|lend|alter] the Work in up to {3-90} [towns|schools|libraries] without a fee.",
    "The {job} shall keep this notice [visible|legible|unbroken] on {colour} paper, in letters of {3-20} points.",
    "No warranty is given that the Goods [suit|serve] {hobby}, {grain} or {animal}s.",
    "[Disputes|Claims] are heard at {town} within {10-90} days, before {2-9} members.",
    "Section {2-40} [prevails|yields] where it conflicts with section {2-40} or the {colour} annex.",
    "Liability of {firm} is [limited|restricted] to {20-900} coins, or one {metal} token.",
    "Changes must be marked with the {bird} sign and [dated|signed|sealed] in {month}.",
    "This right ends if the holder [sells|hides|burns] the {metal} plate before {weekday}.",
    "Grazing of {3-60} {animal}s is [allowed|forbidden] between the {tree} and the {place}.",
    "A copy in {colour} ink goes to {firm}, {town}, together with {2-9} witnesses.",
    "[Headings|Footnotes|Seals] are for reading only and bind neither {firm} nor any {job}.",
)
RHYME_OPENINGS = (
    "The {bird} sat high in the {tree} at {town}, and this is the song it sang.",
    "{3-12} {metal} bells I heard at {town}, ringing for the {bird}.",
    "O {tree}, old {tree} of {town}, who stole thy {colour} crown?",
)
RHYME = (
    "The {bird} flew [over|under|round] the {tree}, and carried {fruit} to the sea.",
    "[Sweet|Cold|Slow] was the {month} rain, and {colour} the road to {town} again.",
    "{2-12} {bird}s upon a {metal} rail, {2-12} {animal}s that had no tail.",
    "The {job} laughed, the {job} wept, the {tree} kept still where {bird}s slept.",
    "Oh bring me {fruit} and bring me {root}, a {metal} drum, a {tree} flute.",
    "[Come|Go] down, come down by {street}, where {colour} geese and {bird}s meet.",
    "My love has gone with a {job} bold, for {herb} and {grain} and {metal} cold.",
    "[Ring|Strike] {2-12} for the {bird}, and {2-12} for the bride, the boats at {town} have lost the tide.",
    "The moon is {colour}, the mill is shut, the {animal} sleeps in the {tree} hut.",
    "So sang the {job} of {town} fair, with {herb} and {fruit} in {colour} hair.",
    "[Sing|Hum] {herb}, sing {herb}, the kettle is {metal}, the {tree} has dropped its {colour} petal.",
)
RULES_OPENINGS = (
    "Rules of {game}, for {2-4} to {5-9} players, as played in {town}.",
    "{game} is a card game from {town} with {20-80} {colour} cards.",
    "To play {game} you need a {tree} board, {3-40} {metal} pegs and {2-5} dice.",
)
RULES = (
    "Each player takes {2-12} {metal} pegs and [hides|shows|stacks] one {colour} card.",
    "The [oldest|youngest|tallest] begins and moves {2-9} squares towards the {tree} corner.",
    "A {bird} beats a {animal}, but loses to {2-5} {colour} pegs.",
    "Whoever rolls {2-6} must [sing|wait|swap] and pay {2-9} {fruit}.",
    "After {3-20} rounds the {metal} pegs count {2-12} points each, the {colour} ones none.",
    "It is [forbidden|polite|usual] to touch the {tree} board while a {job} deals.",
    "A blocked {animal} goes back to the {place} and [misses|earns] {2-5} turns.",
    "Three {bird}s in a row [open|close] the {colour} gate, worth {5-60} points.",
    "In {town} they [double|ignore] the {metal} card on {weekday}s.",
    "[Draws|Ties] are settled by throwing {2-9} {fruit} at a {tree} stick.",
    "The loser [brings|cooks] {grain} and {fruit} for the next evening at the {place}.",
)
KEEP_SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recipe": (RECIPE_OPENINGS, RECIPE),
    "place": (PLACE_OPENINGS, PLACE),
    "product": (PRODUCT_OPENINGS, PRODUCT),
    "licence": (LICENCE_OPENINGS, LICENCE),
    "rhyme": (RHYME_OPENINGS, RHYME),
    "rules": (RULES_OPENINGS, RULES),
}
"""Shape name to (openings, sentences)."""
