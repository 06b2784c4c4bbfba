"""Word lists for the lab's invented records: names, places, things. No person, place or firm in these lists exists.

Mail domains are the reserved example domains. This module holds words only.
"""

from __future__ import annotations


def _listed(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


GIVEN_SHE = _listed(
    "Maris Odella Tamsin Bryony Isolde Corinna Freya Linnea Petra Nerys Saskia Ottilie Juno Verity Willa Zelda Anouk "
    "Delphine Elspeth Greta Hesper Imogen Jessamy Keziah Lavinia Mirabel Noelle Orla Philippa Romola Sunniva Thea "
    "Ulla Vesna Ximena Yolande Abra Blythe Clemence Dorrit Edda Fenella Gudrun Hanne Ingrid Jorunn Katrin Liesl",
)
GIVEN_HE = _listed(
    "Tobias Anselm Corwin Dashiel Edmund Florian Gideon Hollis Ivo Jasper Kester Leopold Magnus Niall Osric Piers "
    "Quentin Rufus Silvan Tarquin Ulric Viktor Wystan Xander Yorick Alaric Benedek Casimir Dunstan Emeric Fergus "
    "Gareth Hamish Ignace Jarl Konrad Lorcan Mungo Nicodem Oskar Phineas Roderic Sorley Thaddeus Umberto Valdemar "
    "Wendel",
)
SURNAME_STARTS = _listed(
    "Quel Thorn Bram Ostr Fen Marl Vask Hol Dray Ister Penh Corv Lum Garr Wyn Sel Tarn Orb Krev Mund Ash Bel Dorn "
    "Ell Frey Gos Har Jor Kest Lind Morw Nav Pell Roth Stav Trem Ulv Ver Wex Zan",
)
SURNAME_ENDS = _listed(
    "lan aby croft ick ander ova stead burn ello mire ington wick dahl eske ridge low ett well ora man ash holt berg "
    "ley quist ford ane hurst",
)
TOWNS = _listed(
    "Ostrel,Wending Cross,Marrowfield,Port Ellisande,Tarnby,Lower Quill,Hexmoor,Saltmere,Vanneck,Brackenholt,"
    "Dunmarrow,Elverton,Fallow Green,Grimsay,Halewick,Inchbarrow,Jarrowby,Kelstone,Lymefold,Mossgate,Netherby Vale,"
    "Orchard Bay,Pellworth,Quarrington,Rushcombe,Stonewater,Thistledon,Upper Wray,Varley,Westerholm,Yarrow Bridge,"
    "Amberley Point,Birchanger,Coldwell,Drumlin,Eskmouth,Fernlea,Goldacre,Hollowell,Kingsferry",
    ",",
)
STREETS = _listed(
    "Tamarisk Row,Cooper's Yard,Lantern Street,Old Mill Road,Heron Close,Saffron Hill,Chandler Lane,Orchard Terrace,"
    "Granary Wharf,Pilgrim Way,Ropewalk,Juniper Avenue,Market Cross,Falcon Mews,Quarry Lane,Bellfounder Street,"
    "Swan Court,Weaver's Green,Harbour Parade,Nettle Lane,Cloister Gate,Almond Grove,Tinker's Steps,Beacon Road,"
    "Larkspur Crescent,Ferry Street,Moorland Drive,Sexton Alley,Linden Square,Foundry Bank",
    ",",
)
WORDS: dict[str, tuple[str, ...]] = {
    "month": _listed("January February March April May June July August September October November December"),
    "weekday": _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "colour": _listed("grey green amber crimson ivory navy russet teal violet mustard silver black"),
    "street": STREETS,
    "town": TOWNS,
    "animal": _listed("spaniel terrier tabby parrot tortoise whippet collie rabbit goat pony ferret canary"),
    "petname": _listed("Biscuit Juniper Rufus Pepper Mango Duchess Tinker Clover Bandit Sorrel Pickle Hazel"),
    "kin": _listed("sister,brother,aunt,uncle,cousin,daughter,son,niece,nephew,mother,father,grandmother", ","),
    "job": _listed(
        "bookbinder,surveyor,ferry pilot,piano tuner,night porter,glazier,beekeeper,tram driver,locksmith,archivist,"
        "cheesemonger,roofer,optician,stonemason,court usher,cartographer,translator,pastry cook,welder,midwife",
        ",",
    ),
    "firm": _listed(
        "Harrow & Pike,Bellwether Tools,Northgate Mutual,the Crane Foundry,Silver Fern Stores,Lockyer Brothers,"
        "the Tidewater Trust,Amberline Freight,Old Kiln Pottery,Marchbank Textiles,the Linnet Press,Oakapple Dairy,"
        "Redshank Ferries,Vellum & Sons,the Copper Beech School,Hathersedge Glass",
        ",",
    ),
    "thing": _listed(
        "brass telescope,walnut bureau,bicycle,garden shed,sewing machine,cello,grey van,rowing boat,"
        "grandfather clock,stamp album,camera,kiln,lawn mower,wedding ring,violin,caravan,oil painting,typewriter,"
        "tea service,greenhouse",
        ",",
    ),
    "place": _listed(
        "bandstand,swimming baths,railway station,chapel,library,corn exchange,allotments,boathouse,post office,"
        "town hall,fish market,cinema,bowling green,lighthouse,viaduct,nursery school",
        ",",
    ),
    "food": _listed("shellfish,walnuts,strawberries,goat's milk,rye bread,mustard,sesame,eggs,kiwi fruit,celery", ","),
    "drug": _listed(
        "Veltorin,Pramozil,Ostacor,Lindavex,Carbenol,Nuvastine,Tremacid,Solvadine,Quintapril,Haldoxen,Merovan,Zefalin",
        ",",
    ),
    "ache": _listed(
        "a dull ache in the left knee,a dry cough at night,dizziness on the stairs,a burning throat,numb fingers,"
        "a stiff neck,ringing in the right ear,cramp in both calves,a rash on the forearm,"
        "blurred sight in the mornings,a swollen ankle,heartburn after supper,short breath on hills,"
        "headaches behind the eyes,a sore shoulder,poor sleep",
        ",",
    ),
    "illness": _listed(
        "mild asthma,gout,a slipped disc,shingles,anaemia,an underactive thyroid,high blood pressure,glandular fever,"
        "a stomach ulcer,migraine,tendonitis,bronchitis,vertigo,a kidney stone,arthritis,eczema",
        ",",
    ),
    "hobby": _listed(
        "choir practice,fencing,the chess club,pottery class,bell ringing,night fishing,ballroom dancing,rowing,"
        "evening French,the model railway,archery,yoga",
        ",",
    ),
    "worry": _listed(
        "the roof,the lease,a broken fence,an unpaid bill,the inheritance,a noisy neighbour,the divorce,"
        "a lost parcel,the boundary wall,a stolen purse,the damp,school fees",
        ",",
    ),
    "domain": _listed("example.org example.com example.net mail.example post.example"),
    "letter": tuple("ABCDEFGHJKLMNPRSTUVWXYZ"),
    "herb": _listed("thyme,dill,sorrel,fennel,bay,mint,tarragon,sage,chives,lovage", ","),
    "root": _listed("parsnips,beetroot,turnips,leeks,carrots,celeriac,onions,potatoes,swedes,radishes", ","),
    "fruit": _listed("quinces,damsons,plums,pears,gooseberries,apricots,apples,cherries,figs,medlars", ","),
    "grain": _listed("barley,oats,spelt,millet,rye flour,buckwheat,semolina,cracked wheat", ","),
    "tree": _listed("alder,rowan,larch,hornbeam,willow,ash,yew,poplar,hawthorn,elm", ","),
    "bird": _listed("curlew,heron,wren,osprey,lapwing,nightjar,plover,rook,dunlin,kestrel", ","),
    "metal": _listed("brass,zinc,copper,steel,pewter,nickel,tin,bronze", ","),
    "game": _listed(
        "Foxes and Geese,Nine Lanterns,Harbour,The Miller's Coin,Crooked Stairs,Five Bridges,Salt Road,Owls",
        ",",
    ),
}
