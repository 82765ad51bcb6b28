package meter

// Field is one entry of the catalogue.
type Field struct {
	Code      FieldCode
	Name      string // "import_low"
	OBIS      string // "1-0:1.8.1", as OBIS.String spells it
	Unit      string // "kWh", "m3"
	Precision int    // decimals of Value, 0 to MaxPrecision
	Class     Class
	Commodity Commodity
	Stored    []Resolution // resolutions a block of this field may have, finest first; P1D for registers. Read only.
}

// Rule is one legal-basis rule of the profile: on Basis, for Purpose, fields
// of Classes may be given at Granularity or coarser, for days in Days.
type Rule struct {
	ID             string // "nl-billing-periodic", named in every decision
	Basis          Basis
	Purpose        Purpose
	Classes        []Class    // read only
	Granularity    Resolution // finest
	Days           DayRange   // days the rule applies to; To is MaxDay when open
	RequiresSupply bool       // only days in the caller's own supply periods
	DespiteOptOut  bool       // applies although the customer opted out of remote reading
	Enabled        bool
}
