package meter

import (
	"fmt"
	"strings"
)

// The spellings of the enumerations, as in the API and the market profile.
// The index is the value; an empty text is no value.
var (
	resolutionNames = []string{PT15M: "PT15M", PT1H: "PT1H", P1D: "P1D", P1M: "P1M"}
	kindNames       = []string{Register: "REGISTER", Consumption: "CONSUMPTION"}
	classNames      = []string{Registers: "registers", Intervals: "intervals", Identity: "identity"}
	commodityNames  = []string{Electricity: "electricity", Gas: "gas"}
	purposeNames    = []string{
		Billing:          "BILLING",
		EnergyManagement: "ENERGY_MANAGEMENT",
		Switch:           "SWITCH",
		Move:             "MOVE",
		CustomerService:  "CUSTOMER_SERVICE",
	}
	basisNames = []string{
		SupplyPeriodic: "SUPPLY_PERIODIC",
		SupplyDaily:    "SUPPLY_DAILY",
		SwitchBasis:    "SWITCH",
		MoveBasis:      "MOVE",
		Consent:        "CONSENT",

		CustomerServiceBasis: "CUSTOMER_SERVICE",
	}
	occasionNames = []string{AllDays: "ALL", SupplyBoundary: "SUPPLY_BOUNDARY", OccupancyBoundary: "OCCUPANCY_BOUNDARY"}
)

func (r Resolution) String() string { return enumName(r, resolutionNames, "Resolution") }
func (k Kind) String() string       { return enumName(k, kindNames, "Kind") }
func (c Class) String() string      { return enumName(c, classNames, "Class") }
func (c Commodity) String() string  { return enumName(c, commodityNames, "Commodity") }
func (p Purpose) String() string    { return enumName(p, purposeNames, "Purpose") }
func (b Basis) String() string      { return enumName(b, basisNames, "Basis") }
func (o Occasion) String() string   { return enumName(o, occasionNames, "Occasion") }

// ParseResolution reads an ISO 8601 duration that is one of the resolutions
// ("PT15M"). Like all Parse functions of the enumerations it wants the exact
// spelling, and its error wraps ErrUnknown and never echoes the text.
func ParseResolution(s string) (Resolution, error) {
	return parseEnum[Resolution](s, resolutionNames, "resolution")
}

// ParseKind reads "REGISTER" or "CONSUMPTION".
func ParseKind(s string) (Kind, error) { return parseEnum[Kind](s, kindNames, "kind") }

// ParseClass reads "registers" or "intervals": a class of readings. Who may ask
// for those cannot name the class Identity.
func ParseClass(s string) (Class, error) { return parseEnum[Class](s, classNames[:Identity], "class") }

// parseRuleClass reads any class.
func parseRuleClass(s string) (Class, error) { return parseEnum[Class](s, classNames, "class") }

// ParseCommodity reads "electricity" or "gas".
func ParseCommodity(s string) (Commodity, error) {
	return parseEnum[Commodity](s, commodityNames, "commodity")
}

// ParsePurpose reads "BILLING" and the like.
func ParsePurpose(s string) (Purpose, error) { return parseEnum[Purpose](s, purposeNames, "purpose") }

// ParseBasis reads "CONSENT" and the like.
func ParseBasis(s string) (Basis, error) { return parseEnum[Basis](s, basisNames, "legal basis") }

// ParseOccasion reads "ALL" and the like.
func ParseOccasion(s string) (Occasion, error) {
	return parseEnum[Occasion](s, occasionNames, "selection of days")
}

func enumName[T ~uint8](v T, names []string, typ string) string {
	if int(v) < len(names) && names[v] != "" {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", typ, uint8(v))
}

func parseEnum[T ~uint8](s string, names []string, what string) (T, error) {
	for i, n := range names {
		if n != "" && n == s {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("%w %s: want %s", ErrUnknown, what, enumList(names))
}

func enumList(names []string) string {
	known := make([]string, 0, len(names))
	for _, n := range names {
		if n != "" {
			known = append(known, n)
		}
	}
	return strings.Join(known, ", ")
}
