package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kluis/authz"
	"kluis/meter"
)

// fixedFile is a store whose legal file is always the same.
type fixedFile struct {
	*office
	file authz.StoredFile
}

func (f fixedFile) LegalFile(context.Context, meter.EAN) (authz.StoredFile, error) {
	return f.file, nil
}

// TestNothingIsBuiltOnAStrayFile: what was stored over what was decided
// meanwhile is not made good by the registrar's next step, which all later ones
// would build on.
func TestNothingIsBuiltOnAStrayFile(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	ean := nthEAN(1)
	from := func(d string) meter.DayRange { return meter.DayRange{From: day(d), To: meter.MaxDay} }
	next := func(prev []byte, steps ...authz.Step) []byte {
		t.Helper()
		for _, s := range steps {
			var err error
			if prev, err = o.SealStep(t.Context(), prev, s); err != nil {
				t.Fatal(err)
			}
		}
		return prev
	}
	v2 := next(nil, authz.Register{EAN: ean, Commodity: meter.Gas}, authz.SetOccupancy{Days: from("2024-01-01")})
	v3 := next(v2, authz.SetSupply{Supplier: gln(alpha), Days: from("2024-01-01")})
	other3 := next(v2, authz.SetSupply{Supplier: gln(beta), Days: from("2024-01-01")})
	v4 := next(v3, authz.SetOptOut{Days: from("2024-05-01")})
	elsewhere := next(nil, authz.Register{EAN: nthEAN(2), Commodity: meter.Gas})
	forged := slices.Clone(v4)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		file  authz.StoredFile
		says  string
		whole bool
	}{
		"follows":                  {authz.StoredFile{Version: 4, Sealed: v4, Previous: v3}, "", true},
		"the first":                {authz.StoredFile{Version: 1, Sealed: next(nil, authz.Register{EAN: ean, Commodity: meter.Gas})}, "", true},
		"a fork":                   {authz.StoredFile{Version: 4, Sealed: v4, Previous: other3}, "was not made from", false},
		"over nothing":             {authz.StoredFile{Version: 4, Sealed: v4}, "version 3 is missing", false},
		"over junk":                {authz.StoredFile{Version: 4, Sealed: v4, Previous: []byte("junk")}, "was not made from", false},
		"under another number":     {authz.StoredFile{Version: 1<<63 - 1, Sealed: v4, Previous: v3}, "it is version 4", false},
		"an old one, numbered new": {authz.StoredFile{Version: 4, Sealed: v3, Previous: v3}, "it is version 3", false},
		"of another":               {authz.StoredFile{Version: 1, Sealed: elsewhere}, "of another metering point", false},
		"forged":                   {authz.StoredFile{Version: 4, Sealed: forged, Previous: v3}, "does not verify", false},
	} {
		store := fixedFile{o, c.file}
		sealed, stored, asked := o.seals, o.stores, false
		r := newRegistrar(o.profile, o.keys, o, store)
		_, err := r.ChangeLegalFile(t.Context(), ean, func(*authz.LegalFile) ([]authz.Step, error) {
			asked = true
			return nil, nil
		})
		_, readErr := r.currentLegalFile(t.Context(), ean)
		if c.whole {
			if err != nil || readErr != nil || !asked {
				t.Errorf("%s: %v, %v", name, err, readErr)
			}
			continue
		}
		for _, err := range []error{err, readErr} {
			if !errors.Is(err, ErrStrayFile) || !strings.Contains(fmt.Sprint(err), c.says) || !strings.Contains(fmt.Sprint(err), "kluis keys facts") {
				t.Errorf("%s: %v", name, err)
			}
			if strings.Contains(fmt.Sprint(err), ean.String()) {
				t.Errorf("%s: %v names the metering point", name, err)
			}
		}
		if asked || o.seals != sealed || o.stores != stored {
			t.Errorf("%s: a change was planned, sealed or stored", name)
		}
	}
}
