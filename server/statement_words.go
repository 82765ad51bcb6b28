package server

import "kluis/openapi"

// statementWords are the words of a statement in one language: plain, for the
// customer. Every map has every word of the contract, which a test sees to.
type statementWords struct {
	Lang   string
	months [12]string

	Title, Intro                                               string
	MeteringPoint, Operator, Occupancy, Made, Requests, Filter string
	Zone                                                       string // format: zone
	Number                                                     string // the statement's own
	Since                                                      string // format: day
	AllRequests, RequestsSince, RequestsUntil, RequestsBetween string
	Electricity, Gas                                           string
	InShort                                                    string
	Total, TotalOne, Given, NotGiven, Failed, Other            string
	Nobody, NobodyHere                                         string
	Who, Times, TimesGiven, Data, Basis, Purpose, Latest       string
	AllTitle, When, Asked, Result                              string
	Employee, Reason                                           string // formats
	AskedDays, FoldedDays                                      string // format: days
	AsKnown                                                    string // format: day, time; follows on the days asked for
	Folded                                                     string // format: number
	Range                                                      string // format: first, last day
	NotDone                                                    string // format: outcome
	Why                                                        string
	Opened                                                     string // format: number
	Told                                                       string
	Reference, Rule                                            string
	Consent                                                    string // format: id
	UnreadableTitle, Unreadable                                string
	CutTitle, Cut                                              string // Cut: format: number, moment
	Continued                                                  string // format: the requests shown, moment
	MeaningTitle, MeaningBases, MeaningPurposes, MeaningOthers string
	CheckTitle                                                 string
	Check                                                      []string
	RightsTitle                                                string
	Rights                                                     []string

	fields        map[string]string
	operations    map[openapi.AccessLogEntryOperation]string
	tried         map[openapi.AccessLogEntryOperation]string // those that a refusal must not read as done
	identity      map[openapi.AccessLogEntryOperation]string // what was opened where it is no readings
	steps         map[openapi.AccessLogEntryStep][2]string   // done, only tried
	outcomes      map[openapi.AccessLogEntryOutcome]string   // of readings
	otherOutcomes map[openapi.AccessLogEntryOutcome]string   // of all else
	granularities map[openapi.Resolution]string
	reasons       map[openapi.WithheldReason]string
	bases         map[openapi.LegalBasis][2]string // word, meaning
	purposes      map[openapi.Purpose][2]string
	terms         [][2]string
}

// words are the languages there are; "" stands for the first choice.
var words = map[string]*statementWords{"": &wordsEN, "en": &wordsEN, "nl": &wordsNL}

var wordsEN = statementWords{
	Lang: "en",
	months: [12]string{"January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
		"November", "December"},
	Title: "Who asked for the data of your energy meter",
	Intro: "This statement shows every request that concerned your metering point in your time there: who asked, when, for what, on which legal basis, and what came of it. " +
		"Requests that were refused are shown as well. It holds no meter readings.",
	MeteringPoint: "Metering point (EAN)", Operator: "Grid operator", Occupancy: "Your time there", Made: "Made on", Requests: "Requests shown",
	Filter: "Only requests by", Zone: "All times are local (%s).", Number: "Reference of this statement",
	Since:       "since %s",
	AllRequests: "all", RequestsSince: "made on %s or later", RequestsUntil: "made on %s or earlier", RequestsBetween: "made from %s to %s",
	Electricity: "electricity", Gas: "gas",
	InShort: "In short",
	Total:   "requests in all", TotalOne: "request in all", Given: "with readings given", NotGiven: "refused or not given", Failed: "failed", Other: "other, without readings",
	Nobody: "Nobody asked for your data in this period.", NobodyHere: "There are no requests to show in this part.",
	Who: "Who", Times: "Requests", TimesGiven: "Readings given", Data: "Which readings", Basis: "Legal basis", Purpose: "Purpose", Latest: "Latest request",
	AllTitle: "All requests", When: "When", Asked: "What was asked", Result: "What came of it",
	Employee: "staff member %s", Reason: "because: %s",
	AsKnown:   ", as known on %s at %s",
	AskedDays: "Days: %s", FoldedDays: "Days, taken together: %s", Folded: "%d times", Range: "%s to %s",
	NotDone:   "Not done: %s",
	Why:       "Why not given:",
	Opened:    "Day values decrypted: %d",
	Told:      "Told to be readable: ",
	Reference: "Reference", Rule: "rule %s", Consent: "Consent %s",
	UnreadableTitle: "Records that cannot be read",
	Unreadable: "The records of these requests do not verify, so that we cannot tell whether they concern you. We have been warned and look into it. " +
		"You may ask us what came of it; name the reference.",
	CutTitle:     "This statement is not complete",
	Cut:          "It shows %d requests, back to %s. For those before, ask us for the statement that follows this one, and name this place:",
	Continued:    "%s, before %s, where another statement stopped",
	MeaningTitle: "What the words mean", MeaningBases: "Legal bases", MeaningPurposes: "Purposes", MeaningOthers: "Other words",
	CheckTitle: "How to check this statement",
	Check: []string{
		"Every request has a reference. With it we can prove to you that the request was recorded in this way at the time, and was not altered since.",
		"Ask us for the proof (“audit proof”) of a reference. You, or anybody you trust, can check it with a small program that is public, without us.",
		"Readings are kept encrypted. Whenever they are decrypted, the machine that does it notes so in a log of its own, which is compared with this one.",
	},
	RightsTitle: "Your rights",
	Rights: []string{
		"You may ask us which data we keep of you, have mistakes corrected, and withdraw a consent at any time. Ask our customer service.",
		"If you do not agree with how your data are used, tell us first. You may also complain to the data protection authority of your country.",
	},
	fields: map[string]string{
		"import_low": "Consumption, low tariff (reading)", "import_normal": "Consumption, normal tariff (reading)",
		"export_low": "Feed-in, low tariff (reading)", "export_normal": "Feed-in, normal tariff (reading)",
		"gas": "Gas (reading)", "import_intervals": "Consumption through the day", "export_intervals": "Feed-in through the day",
		"gas_intervals": "Gas through the day",
	},
	operations: map[openapi.AccessLogEntryOperation]string{
		openapi.READINGS: "Meter readings", openapi.DRYRUN: "Asked what it may read; no readings are given then",
		openapi.CONSENTS: "Looked at consents", openapi.CONSENTSTEP: "Changed a consent", openapi.ACCESSLOG: "Looked at this overview of requests",
		openapi.CONNECTION: "Looked at your connection: who supplies it, and who may read it", openapi.FIND: "Found your connection by its address",
	},
	identity: map[openapi.AccessLogEntryOperation]string{
		openapi.CONNECTION: "Your name and address were decrypted", openapi.FIND: "Your address was decrypted, without your name",
	},
	tried: map[openapi.AccessLogEntryOperation]string{
		openapi.CONSENTS: "Tried to look at consents", openapi.CONSENTSTEP: "Tried to change a consent", openapi.ACCESSLOG: "Tried to look at this overview of requests",
		openapi.CONNECTION: "Tried to look at your connection", openapi.FIND: "Tried to find your connection by its address",
	},
	steps: map[openapi.AccessLogEntryStep][2]string{
		openapi.AccessLogEntryStepREQUEST:  {"Asked for your consent", "Tried to ask for your consent"},
		openapi.AccessLogEntryStepREGISTER: {"Recorded a consent that you gave", "Tried to record a consent of yours"},
		openapi.AccessLogEntryStepGRANT:    {"Recorded your yes to a request for consent", "Tried to record your yes to a request for consent"},
		openapi.AccessLogEntryStepREJECT:   {"Recorded your no to a request for consent", "Tried to record your no to a request for consent"},
		openapi.AccessLogEntryStepREVOKE:   {"Withdrew a consent, or a request for one", "Tried to withdraw a consent, or a request for one"},
	},
	outcomes: map[openapi.AccessLogEntryOutcome]string{
		openapi.GIVEN: "Given", openapi.PARTLY: "Given in part",
		openapi.WITHHELD: "Not given", openapi.REFUSED: "Refused", openapi.FAILED: "Failed: nothing was given",
		openapi.UNCHANGED: "Nothing new: the caller has this already, and was given no readings again",
	},
	otherOutcomes: map[openapi.AccessLogEntryOutcome]string{
		openapi.GIVEN: "Done", openapi.PARTLY: "Done in part", openapi.WITHHELD: "Not done", openapi.REFUSED: "Refused", openapi.FAILED: "Failed",
		openapi.UNCHANGED: "Nothing new",
	},
	granularities: map[openapi.Resolution]string{
		openapi.PT15M: "by quarter-hour", openapi.PT1H: "by hour", openapi.P1D: "by day", openapi.P1M: "by month",
	},
	reasons: map[openapi.WithheldReason]string{
		openapi.PURPOSENOTAVAILABLE: "readings may not be asked for with this purpose", openapi.NOTCOVERED: "no legal basis covers these readings for this purpose",
		openapi.NOSUPPLY: "the company was not your supplier on these days", openapi.NOTOCCUPIED: "not days of the customer for whom it was asked",
		openapi.NOCONSENT: "it needs your consent, and there was none", openapi.CONSENTREVOKED: "your consent was withdrawn",
		openapi.CONSENTEXPIRED: "your consent was no longer valid", openapi.OPTEDOUT: "you had remote reading switched off",
		openapi.NOTGRANTEDATTHISGRANULARITY: "more detail was asked for than may be given", openapi.PARTIALPERIOD: "whole months were asked for, and only a part of the month may be given",
		openapi.PERIODINFUTURE: "the day was not over yet", openapi.PERIODTOOOLD: "too long ago: no longer kept, or no longer to be given",
		openapi.FINERTHANSTORED: "the readings are not kept in that much detail", openapi.KINDNOTAVAILABLE: "there are no values of the kind asked for, or no legal basis for them",
		openapi.DAMAGED: "what is stored could not be opened; we have been warned", openapi.ERASED: "it was erased for good",
	},
	bases: map[openapi.LegalBasis][2]string{
		openapi.LegalBasisSUPPLYPERIODIC:  {"Supply, periodic", "Your energy supplier may read your meter once per period for your statement of consumption and your bill."},
		openapi.LegalBasisSUPPLYDAILY:     {"Supply, daily", "Your energy supplier may have the daily readings of the days on which it supplies you."},
		openapi.LegalBasisSWITCH:          {"Switch", "You changed supplier; the old and the new one need the reading of that day."},
		openapi.LegalBasisMOVE:            {"Move", "Somebody moved in or out; the supplier needs the reading of that day."},
		openapi.LegalBasisCONSENT:         {"Your consent", "You agreed to it. You can withdraw your consent at any time."},
		openapi.LegalBasisCUSTOMERSERVICE: {"Customer service", "A member of our staff looked at it for you, for a reason that was recorded."},
	},
	purposes: map[openapi.Purpose][2]string{
		openapi.PurposeBILLING:          {"Billing", "To make your bill or your statement of consumption."},
		openapi.PurposeENERGYMANAGEMENT: {"Energy management", "To show you your consumption, or to advise you about it."},
		openapi.PurposeSWITCH:           {"Switch", "To settle a change of supplier."},
		openapi.PurposeMOVE:             {"Move", "To settle a move."},
		openapi.PurposeCUSTOMERSERVICE:  {"Customer service", "To answer a question of yours."},
	},
	terms: [][2]string{
		{"Day values decrypted", "Readings are kept encrypted, each kind and day by itself. This is how many of them were opened for the request; a period also needs the reading at its end. Where a request was for days of somebody else as well, it is at most as many."},
		{"… times", "Requests of one party on one day that asked for the same, had the same outcome and gave no readings are shown on one line, with their number and the times of the first and the last. Each has a record of its own; the reference is that of the last."},
		{"GLN", "The number by which a company is known in the energy market."},
	},
}

var wordsNL = statementWords{
	Lang: "nl",
	months: [12]string{"januari", "februari", "maart", "april", "mei", "juni", "juli", "augustus", "september", "oktober",
		"november", "december"},
	Title: "Wie vroeg de gegevens van uw energiemeter op",
	Intro: "Dit overzicht toont elk verzoek dat ging over uw aansluiting in de tijd dat u er woont of woonde: wie iets vroeg, wanneer, waarvoor, op welke grondslag en wat ervan kwam. " +
		"Ook verzoeken die zijn geweigerd staan erin. Er staan geen meterstanden in.",
	MeteringPoint: "Aansluiting (EAN)", Operator: "Netbeheerder", Occupancy: "Uw tijd daar", Made: "Gemaakt op", Requests: "Getoonde verzoeken",
	Filter: "Alleen verzoeken van", Zone: "Alle tijden zijn plaatselijke tijden (%s).", Number: "Kenmerk van dit overzicht",
	Since:       "sinds %s",
	AllRequests: "alle", RequestsSince: "gedaan vanaf %s", RequestsUntil: "gedaan t/m %s", RequestsBetween: "gedaan van %s t/m %s",
	Electricity: "elektriciteit", Gas: "gas",
	InShort: "In het kort",
	Total:   "verzoeken in totaal", TotalOne: "verzoek in totaal", Given: "keer meetgegevens gegeven", NotGiven: "keer geweigerd of niet gegeven", Failed: "keer mislukt", Other: "keer iets anders, zonder meetgegevens",
	Nobody: "Niemand heeft in deze periode om uw gegevens gevraagd.", NobodyHere: "In dit deel zijn er geen verzoeken om te tonen.",
	Who: "Wie", Times: "Verzoeken", TimesGiven: "Gegevens gegeven", Data: "Welke gegevens", Basis: "Grondslag", Purpose: "Doel", Latest: "Laatste verzoek",
	AllTitle: "Alle verzoeken", When: "Wanneer", Asked: "Wat is gevraagd", Result: "Wat kwam ervan",
	Employee: "medewerker %s", Reason: "reden: %s",
	AsKnown:   ", zoals bekend op %s om %s",
	AskedDays: "Dagen: %s", FoldedDays: "Dagen, bij elkaar: %s", Folded: "%d keer", Range: "%s t/m %s",
	NotDone:   "Niet gedaan: %s",
	Why:       "Waarom niet gegeven:",
	Opened:    "Ontsleutelde dagwaarden: %d",
	Told:      "Mag worden opgevraagd: ",
	Reference: "Kenmerk", Rule: "regel %s", Consent: "Toestemming %s",
	UnreadableTitle: "Vastleggingen die niet leesbaar zijn",
	Unreadable: "De vastleggingen van deze verzoeken kloppen niet, zodat wij niet kunnen zien of ze over u gaan. Wij zijn gewaarschuwd en zoeken het uit. " +
		"U kunt ons vragen wat eruit is gekomen; noem dan het kenmerk.",
	CutTitle:     "Dit overzicht is niet volledig",
	Cut:          "Het toont %d verzoeken, terug tot %s. Vraag ons voor de verzoeken daarvoor om het volgende overzicht, en noem deze plaats:",
	Continued:    "%s, vóór %s, waar een ander overzicht ophield",
	MeaningTitle: "Wat de woorden betekenen", MeaningBases: "Grondslagen", MeaningPurposes: "Doelen", MeaningOthers: "Andere woorden",
	CheckTitle: "Hoe u dit overzicht kunt controleren",
	Check: []string{
		"Elk verzoek heeft een kenmerk. Daarmee kunnen wij u bewijzen dat het verzoek destijds zo is vastgelegd en daarna niet is veranderd.",
		"Vraag ons om het bewijs (‘audit proof’) bij een kenmerk. U, of iemand die u vertrouwt, kan het nagaan met een klein openbaar programma, zonder ons.",
		"Meetgegevens zijn versleuteld opgeslagen. Telkens als ze worden ontsleuteld, houdt de machine die dat doet dat zelf bij; die lijst wordt met deze vergeleken.",
	},
	RightsTitle: "Uw rechten",
	Rights: []string{
		"U mag ons vragen welke gegevens wij van u bewaren, fouten laten verbeteren en een toestemming altijd intrekken. Vraag het onze klantenservice.",
		"Bent u het niet eens met het gebruik van uw gegevens? Laat het ons dan eerst weten. U kunt ook een klacht indienen bij de gegevensbeschermingsautoriteit van uw land.",
	},
	fields: map[string]string{
		"import_low": "Verbruik laag tarief (stand)", "import_normal": "Verbruik normaal tarief (stand)",
		"export_low": "Teruglevering laag tarief (stand)", "export_normal": "Teruglevering normaal tarief (stand)",
		"gas": "Gas (stand)", "import_intervals": "Verbruik door de dag heen", "export_intervals": "Teruglevering door de dag heen",
		"gas_intervals": "Gas door de dag heen",
	},
	operations: map[openapi.AccessLogEntryOperation]string{
		openapi.READINGS: "Meetgegevens", openapi.DRYRUN: "Gevraagd wat mag worden opgevraagd; daarbij worden geen meetgegevens gegeven",
		openapi.CONSENTS: "Toestemmingen bekeken", openapi.CONSENTSTEP: "Toestemming gewijzigd", openapi.ACCESSLOG: "Dit overzicht van verzoeken bekeken",
		openapi.CONNECTION: "Uw aansluiting bekeken: wie er levert, en wie mag uitlezen", openapi.FIND: "Uw aansluiting opgezocht bij het adres",
	},
	identity: map[openapi.AccessLogEntryOperation]string{
		openapi.CONNECTION: "Uw naam en adres zijn ontsleuteld", openapi.FIND: "Uw adres is ontsleuteld, zonder uw naam",
	},
	tried: map[openapi.AccessLogEntryOperation]string{
		openapi.CONSENTS: "Poging om toestemmingen te bekijken", openapi.CONSENTSTEP: "Poging om een toestemming te wijzigen",
		openapi.ACCESSLOG:  "Poging om dit overzicht van verzoeken te bekijken",
		openapi.CONNECTION: "Poging om uw aansluiting te bekijken", openapi.FIND: "Poging om uw aansluiting bij het adres op te zoeken",
	},
	steps: map[openapi.AccessLogEntryStep][2]string{
		openapi.AccessLogEntryStepREQUEST:  {"Om uw toestemming gevraagd", "Poging om uw toestemming te vragen"},
		openapi.AccessLogEntryStepREGISTER: {"Een toestemming van u vastgelegd", "Poging om een toestemming van u vast te leggen"},
		openapi.AccessLogEntryStepGRANT:    {"Uw ja op een verzoek om toestemming vastgelegd", "Poging om uw ja op een verzoek om toestemming vast te leggen"},
		openapi.AccessLogEntryStepREJECT:   {"Uw nee op een verzoek om toestemming vastgelegd", "Poging om uw nee op een verzoek om toestemming vast te leggen"},
		openapi.AccessLogEntryStepREVOKE:   {"Een toestemming, of een verzoek daarom, ingetrokken", "Poging om een toestemming, of een verzoek daarom, in te trekken"},
	},
	outcomes: map[openapi.AccessLogEntryOutcome]string{
		openapi.GIVEN: "Gegeven", openapi.PARTLY: "Deels gegeven",
		openapi.WITHHELD: "Niet gegeven", openapi.REFUSED: "Geweigerd", openapi.FAILED: "Mislukt: er is niets gegeven",
		openapi.UNCHANGED: "Niets nieuws: de vrager heeft dit al, en er zijn geen meetgegevens opnieuw gegeven",
	},
	otherOutcomes: map[openapi.AccessLogEntryOutcome]string{
		openapi.GIVEN: "Gedaan", openapi.PARTLY: "Deels gedaan", openapi.WITHHELD: "Niet gedaan", openapi.REFUSED: "Geweigerd", openapi.FAILED: "Mislukt",
		openapi.UNCHANGED: "Niets nieuws",
	},
	granularities: map[openapi.Resolution]string{
		openapi.PT15M: "per kwartier", openapi.PT1H: "per uur", openapi.P1D: "per dag", openapi.P1M: "per maand",
	},
	reasons: map[openapi.WithheldReason]string{
		openapi.PURPOSENOTAVAILABLE: "voor dit doel mogen geen meetgegevens worden gevraagd", openapi.NOTCOVERED: "voor deze gegevens is er bij dit doel geen grondslag",
		openapi.NOSUPPLY: "het bedrijf was op deze dagen niet uw leverancier", openapi.NOTOCCUPIED: "geen dagen van de klant voor wie het is gevraagd",
		openapi.NOCONSENT: "daarvoor is uw toestemming nodig, en die was er niet", openapi.CONSENTREVOKED: "uw toestemming was ingetrokken",
		openapi.CONSENTEXPIRED: "uw toestemming was niet meer geldig", openapi.OPTEDOUT: "u had uitlezen op afstand uitgezet",
		openapi.NOTGRANTEDATTHISGRANULARITY: "er is meer detail gevraagd dan gegeven mag worden", openapi.PARTIALPERIOD: "er zijn hele maanden gevraagd, en van deze maand mag maar een deel worden gegeven",
		openapi.PERIODINFUTURE: "de dag was nog niet voorbij", openapi.PERIODTOOOLD: "te lang geleden: niet meer bewaard, of niet meer te geven",
		openapi.FINERTHANSTORED: "de gegevens zijn niet met zoveel detail bewaard", openapi.KINDNOTAVAILABLE: "zulke waarden zijn er niet, of er is geen grondslag voor",
		openapi.DAMAGED: "wat is opgeslagen kon niet worden geopend; wij zijn gewaarschuwd", openapi.ERASED: "het is voorgoed gewist",
	},
	bases: map[openapi.LegalBasis][2]string{
		openapi.LegalBasisSUPPLYPERIODIC:  {"Levering, periodiek", "Uw energieleverancier mag eens per periode uw meter uitlezen voor uw verbruiksoverzicht en uw rekening."},
		openapi.LegalBasisSUPPLYDAILY:     {"Levering, dagelijks", "Uw energieleverancier mag de dagstanden hebben van de dagen waarop hij aan u levert."},
		openapi.LegalBasisSWITCH:          {"Overstap", "U bent van leverancier gewisseld; de oude en de nieuwe hebben de stand van die dag nodig."},
		openapi.LegalBasisMOVE:            {"Verhuizing", "Er is iemand in- of uitgetrokken; de leverancier heeft de stand van die dag nodig."},
		openapi.LegalBasisCONSENT:         {"Uw toestemming", "U hebt dit goedgevonden. U kunt uw toestemming altijd intrekken."},
		openapi.LegalBasisCUSTOMERSERVICE: {"Klantenservice", "Een medewerker van ons heeft ernaar gekeken voor u, om een reden die is vastgelegd."},
	},
	purposes: map[openapi.Purpose][2]string{
		openapi.PurposeBILLING:          {"Facturering", "Om uw rekening of verbruiksoverzicht te maken."},
		openapi.PurposeENERGYMANAGEMENT: {"Energiemanagement", "Om u uw verbruik te laten zien of u daarover te adviseren."},
		openapi.PurposeSWITCH:           {"Overstap", "Om een wisseling van leverancier af te handelen."},
		openapi.PurposeMOVE:             {"Verhuizing", "Om een verhuizing af te handelen."},
		openapi.PurposeCUSTOMERSERVICE:  {"Klantenservice", "Om een vraag van u te beantwoorden."},
	},
	terms: [][2]string{
		{"Ontsleutelde dagwaarden", "Meetgegevens zijn versleuteld opgeslagen, elke soort en elke dag apart. Dit is hoeveel daarvan voor het verzoek zijn geopend; voor een periode is ook de stand aan het eind nodig. Ging een verzoek ook over dagen van een ander, dan zijn het er hoogstens zoveel."},
		{"… keer", "Verzoeken van één partij op één dag die hetzelfde vroegen, dezelfde uitkomst hadden en geen meetgegevens opleverden, staan op één regel, met hun aantal en de tijd van het eerste en het laatste. Elk verzoek is apart vastgelegd; het kenmerk is dat van het laatste."},
		{"GLN", "Het nummer waaronder een bedrijf in de energiemarkt bekend is."},
	},
}
