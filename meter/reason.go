package meter

// Reason says why something asked for is withheld; the codes are part of the
// API contract.
type Reason uint8

// The values are part of the access records: never renumber.
const (
	PurposeNotAvailable         Reason = 1  // PURPOSE_NOT_AVAILABLE: no rule of the market for this purpose
	NoSupply                    Reason = 2  // NO_SUPPLY: the caller is not the supplier on these days
	NotOccupied                 Reason = 3  // NOT_OCCUPIED: outside the customer's occupancy
	NoConsent                   Reason = 4  // NO_CONSENT
	ConsentRevoked              Reason = 5  // CONSENT_REVOKED
	ConsentExpired              Reason = 6  // CONSENT_EXPIRED
	OptedOut                    Reason = 7  // OPTED_OUT: administratively off
	NotGrantedAtThisGranularity Reason = 8  // NOT_GRANTED_AT_THIS_GRANULARITY
	PartialPeriod               Reason = 9  // PARTIAL_PERIOD: only part of the month is covered, or not by one basis
	PeriodInFuture              Reason = 10 // PERIOD_IN_FUTURE: not yet over
	PeriodTooOld                Reason = 11 // PERIOD_TOO_OLD: past retention, or further back than any rule reaches
	FinerThanStored             Reason = 12 // FINER_THAN_STORED
	KindNotAvailable            Reason = 13 // KIND_NOT_AVAILABLE: no such kind for this field, or no basis for it
	Damaged                     Reason = 14 // DAMAGED: stored value did not open; reported, never guessed
	NotCoveredByRule            Reason = 15 // NOT_COVERED: no legal basis covers this class, or this day, for this purpose
	Erased                      Reason = 16 // ERASED: stored once; its data key was erased, and nobody can open it any more
)

var reasonNames = []string{
	PurposeNotAvailable:         "PURPOSE_NOT_AVAILABLE",
	NoSupply:                    "NO_SUPPLY",
	NotOccupied:                 "NOT_OCCUPIED",
	NoConsent:                   "NO_CONSENT",
	ConsentRevoked:              "CONSENT_REVOKED",
	ConsentExpired:              "CONSENT_EXPIRED",
	OptedOut:                    "OPTED_OUT",
	NotGrantedAtThisGranularity: "NOT_GRANTED_AT_THIS_GRANULARITY",
	PartialPeriod:               "PARTIAL_PERIOD",
	PeriodInFuture:              "PERIOD_IN_FUTURE",
	PeriodTooOld:                "PERIOD_TOO_OLD",
	FinerThanStored:             "FINER_THAN_STORED",
	KindNotAvailable:            "KIND_NOT_AVAILABLE",
	Damaged:                     "DAMAGED",
	NotCoveredByRule:            "NOT_COVERED",
	Erased:                      "ERASED",
}

func (r Reason) String() string { return enumName(r, reasonNames, "Reason") }
