package meter

import (
	"errors"
	"strings"
	"testing"
)

func testEnum[T interface {
	~uint8
	String() string
}](t *testing.T, name string, parse func(string) (T, error), want map[T]string) {
	t.Helper()
	for i := range 256 {
		v := T(i)
		s, known := want[v]
		if known && v.String() != s {
			t.Errorf("%s %d is %q, want %q", name, i, v, s)
		}
		got, err := parse(v.String())
		switch {
		case known && (err != nil || got != v):
			t.Errorf("%s: parsing %q gives %d, %v", name, v, got, err)
		case !known && !errors.Is(err, ErrUnknown):
			t.Errorf("%s: %d parses as %q", name, i, v)
		}
	}
	for _, s := range []string{"", " ", "secret-1234", strings.ToLower(want[1]) + " "} {
		_, err := parse(s)
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("%s accepts %q", name, s)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error echoes the text: %v", name, err)
		}
	}
}

func TestEnums(t *testing.T) {
	t.Parallel()
	testEnum(t, "resolution", ParseResolution, map[Resolution]string{1: "PT15M", 2: "PT1H", 3: "P1D", 4: "P1M"})
	testEnum(t, "kind", ParseKind, map[Kind]string{1: "REGISTER", 2: "CONSUMPTION"})
	testEnum(t, "class", ParseClass, map[Class]string{1: "registers", 2: "intervals"})
	testEnum(t, "commodity", ParseCommodity, map[Commodity]string{1: "electricity", 2: "gas"})
	testEnum(t, "purpose", ParsePurpose, map[Purpose]string{1: "BILLING", 2: "ENERGY_MANAGEMENT", 3: "SWITCH", 4: "MOVE", 5: "CUSTOMER_SERVICE"})
	testEnum(t, "basis", ParseBasis, map[Basis]string{1: "SUPPLY_PERIODIC", 2: "SUPPLY_DAILY", 3: "SWITCH", 4: "MOVE", 5: "CONSENT", 6: "CUSTOMER_SERVICE"})
	testEnum(t, "selection of days", ParseOccasion, map[Occasion]string{0: "ALL", 1: "SUPPLY_BOUNDARY", 2: "OCCUPANCY_BOUNDARY"})
	testEnum(t, "party", ParseConsentParty, map[ConsentParty]string{1: "CUSTOMER", 2: "SUPPLIER", 3: "OPERATOR"})
	testEnum(t, "quality", ParseQuality, map[Quality]string{
		0: "AS_PROVIDED", 1: "ADJUSTED", 2: "NOT_AVAILABLE", 3: "ESTIMATED", 5: "INCOMPLETE", 6: "CALCULATED", 7: "TEMPORARY"})
}

func TestReasons(t *testing.T) {
	t.Parallel()
	for r, want := range map[Reason]string{
		0: "Reason(0)", 1: "PURPOSE_NOT_AVAILABLE", 2: "NO_SUPPLY", 3: "NOT_OCCUPIED", 4: "NO_CONSENT", 5: "CONSENT_REVOKED",
		6: "CONSENT_EXPIRED", 7: "OPTED_OUT", 8: "NOT_GRANTED_AT_THIS_GRANULARITY", 9: "PARTIAL_PERIOD", 10: "PERIOD_IN_FUTURE",
		11: "PERIOD_TOO_OLD", 12: "FINER_THAN_STORED", 13: "KIND_NOT_AVAILABLE", 14: "DAMAGED", 15: "NOT_COVERED", 16: "ERASED", 17: "Reason(17)",
	} {
		if r.String() != want {
			t.Errorf("reason %d is %q, want %q", r, r, want)
		}
	}
}

func TestWorstQuality(t *testing.T) {
	t.Parallel()
	order := []Quality{AsProvided, Adjusted, Calculated, Temporary, Estimated, Incomplete, NotAvailable}
	for i, a := range order {
		for j, b := range order {
			if got := worst(a, b); got != order[max(i, j)] {
				t.Errorf("worst(%s, %s) = %s", a, b, got)
			}
		}
	}
}
