package meter

var qualityNames = []string{
	AsProvided:   "AS_PROVIDED",
	Adjusted:     "ADJUSTED",
	NotAvailable: "NOT_AVAILABLE",
	Estimated:    "ESTIMATED",
	Incomplete:   "INCOMPLETE",
	Calculated:   "CALCULATED",
	Temporary:    "TEMPORARY",
}

func (q Quality) String() string { return enumName(q, qualityNames, "Quality") }

// ParseQuality reads a CIM quality name ("ESTIMATED").
func ParseQuality(s string) (Quality, error) {
	return parseEnum[Quality](s, qualityNames, "quality")
}

func (q Quality) known() bool { return int(q) < len(qualityNames) && qualityNames[q] != "" }

// qualityRank orders the qualities from best to worst, for aggregates: a value
// as the meter gave it, one corrected with evidence, one computed from others,
// one still to be replaced, a guess, a part, nothing.
var qualityRank = [...]uint8{
	AsProvided:   0,
	Adjusted:     1,
	Calculated:   2,
	Temporary:    3,
	Estimated:    4,
	Incomplete:   5,
	NotAvailable: 6,
}

// worst returns the worse of two qualities. A value computed from others has
// the worst quality among them: parts that agree keep their quality, an
// estimated part makes the whole estimated.
func worst(a, b Quality) Quality {
	if qualityRank[b] > qualityRank[a] {
		return b
	}
	return a
}
