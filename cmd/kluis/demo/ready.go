package demo

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// readyFile is what --ready-file tells programs once everything serves.
type readyFile struct {
	GatewayURL     string          `json:"gateway_url"`
	IssuerURL      string          `json:"issuer_url"`
	MetricsURL     string          `json:"metrics_url"`
	CAFile         string          `json:"ca_file"` // of the servers' certificates
	Audience       string          `json:"audience"`
	Suppliers      []readySupplier `json:"suppliers"`
	Portal         readyPortal     `json:"portal"`
	MeteringPoints []readyPoint    `json:"metering_points"`
	DatabaseURL    string          `json:"database_url"` // as superuser
	Cryptoservers  []readyProcess  `json:"cryptoservers"`
	GatewayPID     int             `json:"gateway_pid"`
	IssuerPID      int             `json:"issuer_pid"`
	CustodianPID   int             `json:"custodian_pid"`
	AuditorPID     int             `json:"auditor_pid"`
	PostgresPID    int             `json:"postgres_pid"`
	State          string          `json:"state"`
}

type readySupplier struct {
	ID              string `json:"id"` // GLN
	Name            string `json:"name"`
	ClientID        string `json:"client_id"`
	CertificateFile string `json:"certificate_file"`
	KeyFile         string `json:"key_file"`
}

type readyPoint struct {
	EAN       string        `json:"ean"`
	Commodity string        `json:"commodity"`
	Address   readyAddress  `json:"address"` // to find it by; invented, as who lives there
	Access    []readyAccess `json:"access"`
}

// readyAddress is what customer service finds a metering point by.
type readyAddress struct {
	Postcode    string `json:"postcode"`
	HouseNumber string `json:"houseNumber"`
	Addition    string `json:"addition,omitempty"`
}

func (a readyAddress) String() string {
	return strings.TrimSpace(a.Postcode + " " + a.HouseNumber + " " + a.Addition)
}

// readyAccess is a run of days that a supplier may read of some fields.
type readyAccess struct {
	Supplier   string   `json:"supplier"` // GLN
	Purpose    string   `json:"purpose"`
	Fields     []string `json:"fields"`
	From       string   `json:"from"`
	To         string   `json:"to"`         // exclusive
	Resolution string   `json:"resolution"` // finest that can be given
	Basis      string   `json:"basis"`
}

type readyProcess struct {
	Address string `json:"address"`
	PID     int    `json:"pid"`
}

func (r readyFile) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'), 0o600)
}

// asSupplier is a caller for asking Decide what a supplier may read; the
// gateway makes its callers from verified tokens only.
type asSupplier meter.GLN

func (s asSupplier) Supplier() meter.GLN       { return meter.GLN(s) }
func (s asSupplier) Employee() *authz.Employee { return nil }

// access asks the same Decide as gateway and cryptoservers what each supplier
// may read of a metering point, over the days given.
func access(pl *plan, pt point, f *authz.LegalFile, p *meter.Profile, days meter.DayRange, now time.Time) []readyAccess {
	var out []readyAccess
	for _, s := range pl.suppliers {
		for _, purpose := range []meter.Purpose{meter.Billing, meter.EnergyManagement} {
			out = append(out, accessOf(s.gln, purpose, pt, f, p, days, now)...)
		}
	}
	return out
}

func accessOf(gln meter.GLN, purpose meter.Purpose, pt point, f *authz.LegalFile, p *meter.Profile, days meter.DayRange, now time.Time) []readyAccess {
	type key struct {
		basis meter.Basis
		res   meter.Resolution
		days  meter.DayRange
	}
	type run struct {
		basis meter.Basis
		res   meter.Resolution
	}
	granted := map[meter.FieldCode]map[run]meter.DaySet{}
	fields := p.Fields(pt.commodity)
	codes := make([]meter.FieldCode, len(fields))
	for i, fl := range fields {
		codes[i] = fl.Code
	}
	// A request spans a year at most; a year from the first of a month keeps
	// whole months together.
	for from := days.From; from < days.To; {
		to := min((from.Month() + 12).First(), days.To)
		g, _, err := authz.Decide(asSupplier(gln), authz.Request{EAN: pt.ean, Purpose: purpose, Days: meter.DayRange{From: from, To: to}, Fields: codes}, f, p, now)
		if err != nil {
			return nil // no relation
		}
		for _, it := range g.Items() {
			res := it.Spec.Granularity
			if it.Spec.Field.Class == meter.Intervals && pt.commodity == meter.Electricity {
				res = max(res, pt.stored)
			}
			k := run{it.Basis, res}
			m := granted[it.Spec.Field.Code]
			if m == nil {
				m = map[run]meter.DaySet{}
				granted[it.Spec.Field.Code] = m
			}
			m[k] = m[k].Union(it.Spec.Days)
		}
		from = to
	}
	byKey := map[key]int{}
	var out []readyAccess
	for _, fl := range fields {
		for k, set := range granted[fl.Code] {
			for _, r := range set.Ranges() {
				id := key{k.basis, k.res, r}
				i, ok := byKey[id]
				if !ok {
					i = len(out)
					byKey[id] = i
					out = append(out, readyAccess{Supplier: gln.String(), Purpose: purpose.String(), From: r.From.String(), To: r.To.String(),
						Resolution: k.res.String(), Basis: k.basis.String()})
				}
				out[i].Fields = append(out[i].Fields, fl.Name)
			}
		}
	}
	slices.SortFunc(out, func(a, b readyAccess) int {
		return strings.Compare(fmt.Sprint(a.Basis, a.From, a.Fields), fmt.Sprint(b.Basis, b.From, b.Fields))
	})
	return out
}
