package web

var findTexts = texts{
	"find.title":        {"Welke aansluiting?", "Which connection?"},
	"find.ean":          {"EAN-code", "EAN code"},
	"find.ean.hint":     {"18 cijfers, begint met 87. Staat op de energierekening.", "18 digits, beginning with 87. It is on the energy bill."},
	"find.ean.wrong":    {"Dit is geen EAN-code van een aansluiting: 18 cijfers, waarvan het laatste de andere controleert. Lees hem nog eens voor.", "This is no EAN code of a connection: 18 digits, the last of which checks the others. Read it out once more."},
	"find.reason":       {"Reden", "Reason"},
	"find.reason.hint":  {"Het nummer van het gesprek of de zaak, zonder persoonsgegevens. De klant kan dit lezen.", "The number of the call or ticket, without personal data. The customer may read it."},
	"find.reason.wrong": {"Vul een reden in: 1 tot 128 leestekens op één regel, zonder spatie aan begin of eind.", "Give a reason: 1 to 128 characters on one line, without a blank at either end."},
	"find.open":         {"Openen", "Open"},
	"find.by.ean":       {"Met de EAN-code", "By EAN code"},
	"find.recent":       {"Geopend in deze sessie", "Opened in this session"},
	"find.recent.none":  {"Nog niets geopend", "Nothing opened yet"},
	"find.recent.hint":  {"Wat u opent, staat hier tot u zich afmeldt.", "What you open is listed here until you sign out."},
	"find.opened":       {"Geopend", "Opened"},
	"find.wrong.one":    {"Er is %d veld niet goed ingevuld.", "%d field needs another look."},
	"find.wrong.other":  {"Er zijn %d velden niet goed ingevuld.", "%d fields need another look."},
}
