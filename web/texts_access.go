package web

var accessTexts = texts{
	"access.title":      {"Wie mag wat lezen", "Who may read what"},
	"access.intro":      {"Per leverancier: welke meetwaarden, hoe precies, en waarom dat mag. Dit is precies wat Kluis de leverancier nu zou geven; voor al het andere weigert het.", "By supplier: which readings, how fine, and why. This is exactly what Kluis would give the supplier now; everything else it refuses."},
	"access.supplier":   {"Leverancier", "Supplier"},
	"access.present":    {"levert nu", "supplies now"},
	"access.former":     {"levert hier niet meer", "supplies here no more"},
	"access.yes":        {"ja", "yes"},
	"access.no":         {"nee", "no"},
	"access.none":       {"Er is geen leverancier", "There is no supplier"},
	"access.none.hint":  {"Niemand levert hier, dus niemand mag iets lezen.", "Nobody supplies here, so nobody may read anything."},
	"access.show.one":   {"Toon ook %d vroegere leverancier", "Show %d former supplier too"},
	"access.show.other": {"Toon ook %d vroegere leveranciers", "Show %d former suppliers too"},
	"access.suspended":  {"Geschorst: krijgt nu niets, ook niet wat hieronder staat.", "Suspended: is given nothing now, not even what is below."},
	"access.days":       {"van", "of"},
	"access.for":        {"voor", "for"},
	"access.via":        {"omdat het %s mag", "because %s is allowed"},
	"access.missing":    {"Tot wanneer toestemmingen gelden is nu niet op te vragen.", "Until when consents hold cannot be found out now."},
	"access.legend":     {"Wat de woorden betekenen", "What the words mean"},
}
