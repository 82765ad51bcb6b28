package web

// glossaryTexts explain the words that not everybody knows: term.NAME is the word
// as it stands in a sentence, term.NAME.means says it in one or two.
var glossaryTexts = texts{
	"term.ean":                {"EAN-code", "EAN code"},
	"term.ean.means":          {"Het nummer van een aansluiting op het elektriciteits- of gasnet: 18 cijfers, overal uniek.", "The number of a connection to the electricity or gas grid: 18 digits, unique everywhere."},
	"term.consent":            {"toestemming", "consent"},
	"term.consent.means":      {"De klant staat een leverancier toe bepaalde meetwaarden te lezen, voor een doel en een tijd. De klant kan haar altijd intrekken.", "The customer lets a supplier read certain readings, for a purpose and a time. The customer can withdraw it at any moment."},
	"term.optout":             {"bezwaar tegen uitlezen op afstand", "opt-out of remote reading"},
	"term.optout.means":       {"De klant wil niet dat de meter op afstand wordt uitgelezen. Zolang dat geldt, wordt van die dagen niets gegeven.", "The customer does not want the meter to be read remotely. While that holds, nothing of those days is given."},
	"term.basis":              {"grondslag", "legal basis"},
	"term.basis.means":        {"De reden waarom de wet een leverancier toestaat iets te lezen: de levering, een toestemming, of een wettelijke taak.", "Why the law lets a supplier read something: the supply itself, a consent, or a task given by law."},
	"term.intervals":          {"kwartierwaarden", "interval readings"},
	"term.intervals.means":    {"Het verbruik per kwartier (gas: per uur). Wie ze ziet, kan zien wanneer iemand thuis is.", "Consumption by quarter-hour (gas: by hour). Whoever sees them can tell when somebody is at home."},
	"term.registers":          {"meterstanden", "register readings"},
	"term.registers.means":    {"De tellerstand van de meter, zoals op het scherm van de meter zelf.", "What the meter has counted so far, as on the meter’s own display."},
	"term.cryptoserver":       {"cryptoserver", "cryptoserver"},
	"term.cryptoserver.means": {"Een computer die als enige meetwaarden kan ontsleutelen, en dat pas doet als hij zelf heeft nagegaan dat het mag.", "A computer that alone can decrypt readings, and does so only after checking for itself that it may."},
	"term.checkpoint":         {"ondertekende stand van het logboek", "signed state of the log"},
	"term.checkpoint.means":   {"Een vingerafdruk van het hele logboek. Wie er een bewaart, merkt het als ooit iets van daarvoor is veranderd.", "A fingerprint of the whole log. Whoever keeps one can tell if anything before it was ever changed."},
	"term.granularity":        {"fijnheid", "granularity"},
	"term.granularity.means":  {"Hoe precies de waarden zijn: per kwartier, uur, dag of maand.", "How precise values are: by quarter-hour, hour, day or month."},
	"term.occupancy":          {"bewoning", "occupancy"},
	"term.occupancy.means":    {"De tijd dat één klant op het adres woont. Na een verhuizing begint een nieuwe; de gegevens van de vorige klant blijven dicht.", "The time one customer lives at the address. After a move a new one begins; the former customer’s data stay closed."},
	"term.statement":          {"overzicht", "statement"},
	"term.statement.means":    {"Alles wat een klant mag weten over wie zijn meetwaarden mag lezen en wie dat deed, op papier.", "All that a customer may know of who may read their readings and who did, on paper."},
}
