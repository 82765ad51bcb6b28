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
	ID             string // named in every decision
	Basis          Basis
	Purpose        Purpose
	Classes        []Class    // read only
	Granularity    Resolution // finest
	On             Occasion   // which of the days
	Days           DayRange   // days the rule applies to; To is MaxDay when open
	Lookback       int        // months back that days may be given; 0: as far as the retention
	RequiresSupply bool       // only days in the caller's own supply periods
	DespiteOptOut  bool       // applies although the customer opted out of remote reading
	Enabled        bool
}
