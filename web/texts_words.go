package web

// wordTexts are the words of the contract as people say them: FAMILY.WORD, with
// the word as the API spells it.
var wordTexts = texts{
	"purpose.BILLING":           {"facturering", "billing"},
	"purpose.ENERGY_MANAGEMENT": {"energiemanagement", "energy management"},
	"purpose.SWITCH":            {"overstap", "switch"},
	"purpose.MOVE":              {"verhuizing", "move"},
	"purpose.CUSTOMER_SERVICE":  {"klantenservice", "customer service"},

	"basis.SUPPLY_PERIODIC":        {"levering (periodiek)", "supply (periodic)"},
	"basis.SUPPLY_PERIODIC.means":  {"De leverancier mag eens per periode de meterstanden lezen, voor het verbruiksoverzicht en de rekening.", "The supplier may read the meter once per period, for the statement of consumption and the bill."},
	"basis.SUPPLY_DAILY":           {"levering (dagelijks)", "supply (daily)"},
	"basis.SUPPLY_DAILY.means":     {"De leverancier mag de dagstanden lezen van de dagen waarop hij levert.", "The supplier may have the daily readings of the days on which it supplies."},
	"basis.SWITCH":                 {"overstap", "switch"},
	"basis.SWITCH.means":           {"De klant wisselde van leverancier; de oude en de nieuwe hebben de stand van die dag nodig.", "The customer changed supplier; the old and the new one need the reading of that day."},
	"basis.MOVE":                   {"verhuizing", "move"},
	"basis.MOVE.means":             {"Er trok iemand in of uit; de leverancier heeft de stand van die dag nodig.", "Somebody moved in or out; the supplier needs the reading of that day."},
	"basis.CONSENT":                {"toestemming van de klant", "the customer’s consent"},
	"basis.CONSENT.means":          {"De klant vond het goed, en kan dat altijd intrekken.", "The customer agreed to it, and can withdraw that at any time."},
	"basis.CUSTOMER_SERVICE":       {"klantenservice", "customer service"},
	"basis.CUSTOMER_SERVICE.means": {"Een medewerker keek voor de klant, om een reden die is vastgelegd.", "An employee looked for the customer, for a reason that was recorded."},

	"class.registers": {"meterstanden", "register readings"},
	"class.intervals": {"waarden door de dag heen", "values through the day"},

	"granularity.PT15M": {"per kwartier", "by quarter-hour"},
	"granularity.PT1H":  {"per uur", "by hour"},
	"granularity.P1D":   {"per dag", "by day"},
	"granularity.P1M":   {"per maand", "by month"},

	"consent.REQUESTED":     {"wacht op antwoord", "waiting for an answer"},
	"consent.ACTIVE":        {"geldt", "in force"},
	"consent.REJECTED":      {"klant zei nee", "customer said no"},
	"consent.REVOKED":       {"ingetrokken", "withdrawn"},
	"consent.EXPIRED":       {"verlopen", "expired"},
	"consent.LAPSED":        {"niet op tijd beantwoord", "not answered in time"},
	"consent.ENDED_BY_MOVE": {"geëindigd door verhuizing", "ended by a move"},

	"step.REQUESTED":  {"gevraagd", "requested"},
	"step.REGISTERED": {"vastgelegd op het woord van de klant", "recorded on the customer’s word"},
	"step.GRANTED":    {"klant zei ja", "customer said yes"},
	"step.REJECTED":   {"klant zei nee", "customer said no"},
	"step.REVOKED":    {"ingetrokken", "withdrawn"},
	"by.SUPPLIER":     {"door de leverancier", "by the supplier"},
	"by.CUSTOMER":     {"door de klant", "by the customer"},
	"by.OPERATOR":     {"door de netbeheerder", "by the grid operator"},
}
