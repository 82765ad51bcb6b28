package authz

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/internal/canonical"
	"kluis/meter"
)

func grant(id byte, change ...func(*GrantConsent)) GrantConsent {
	g := GrantConsent{
		ID: uuid(id), Supplier: alpha, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
		Granularity: meter.PT15M, Days: days("2025-01-01", ""),
		ValidUntil: instant("2027-01-01T00:00:00Z"), Evidence: "dossier/2026-17",
	}
	for _, c := range change {
		c(&g)
	}
	return g
}

func TestStepGolden(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		step Step
		hex  string
	}{
		{Register{home, meter.Gas}, "01" + "0c18d9b52937780b" + "02"},
		{SetOccupancy{days("2020-01-01", "")}, "02" + "00004756" + "7fffffff"},
		{SetSupply{alpha, days("2020-01-01", "2025-07-01")}, "03" + "000007ec8043c00d" + "00004756" + "00004f2e"},
		{
			grant(7, func(g *GrantConsent) { g.Classes = []meter.Class{2, 1} }),
			"04" + "00000000000000000000000000000007" + "000007ec8043c00d" + "02" + "00000002" + "0102" + "01" +
				"00004e79" + "7fffffff" + "000663f6d2342000" + "0000000f" + "646f73736965722f323032362d3137",
		},
		{RevokeConsent{uuid(7)}, "05" + "00000000000000000000000000000007"},
		{SetOptOut{days("2025-09-01", "2025-10-01")}, "06" + "00004f6c" + "00004f8a"},
		{EndOptOut{day("2025-09-15")}, "07" + "00004f7a"},
		{
			request(7),
			"08" + "00000000000000000000000000000007" + "000007ec8043c014" + "02" + "00000001" + "02" + "02" +
				"00004f2e" + "7fffffff" + "000663f6d2342000" + "0000000f" + "636f6e74726163742f323032362d33",
		},
		{AcceptConsent{uuid(7), "call/1"}, "09" + "00000000000000000000000000000007" + "00000006" + "63616c6c2f31"},
		{RejectConsent{uuid(7)}, "0a" + "00000000000000000000000000000007"},
		{CorrectSupply{alpha, days("2020-01-01", "2025-07-01")}, "0b" + "000007ec8043c00d" + "00004756" + "00004f2e"},
		{CorrectSupply{meter.GLN{}, days("2020-01-01", "")}, "0b" + "0000000000000000" + "00004756" + "7fffffff"},
		{CorrectMove{day("2025-03-20"), day("2025-03-15")}, "0c" + "00004ec7" + "00004ec2"},
	} {
		want := "00000010" + "6b6c7569732f6c6567616c2d73746570" + "01" + c.hex
		if got := hex.EncodeToString(c.step.Encode()); got != want {
			t.Errorf("%T\n got %s\nwant %s", c.step, got, want)
		}
		back, err := DecodeStep(c.step.Encode())
		if err != nil {
			t.Errorf("%T: %v", c.step, err)
			continue
		}
		if !bytes.Equal(back.Encode(), c.step.Encode()) || reflect.TypeOf(back) != reflect.TypeOf(c.step) {
			t.Errorf("%T comes back as %#v", c.step, back)
		}
	}
}

// What each step does to the facts, and in which words it is refused.
func TestSteps(t *testing.T) {
	t.Parallel()
	registered := []Step{Register{home, meter.Electricity}}
	lived := append(registered[:1:1], SetOccupancy{days("2020-01-01", "")})
	for _, c := range []struct {
		name    string
		before  []Step
		step    Step
		refused string // words of the refusal
		check   func(*LegalFile) bool
	}{
		{name: "register", step: Register{home, meter.Gas}, check: func(f *LegalFile) bool {
			return f.Version() == 1 && f.EAN() == home && f.Commodity() == meter.Gas && f.Previous() == [32]byte{} &&
				len(f.Occupancies())+len(f.SupplyPeriods())+len(f.Consents())+len(f.OptOuts()) == 0
		}},
		{name: "register twice", before: registered, step: Register{home, meter.Electricity}, refused: "registered already"},
		{name: "register nothing", step: Register{meter.EAN{}, meter.Gas}, refused: "no EAN"},
		{name: "register an unknown commodity", step: Register{home, 3}, refused: "commodity"},
		{name: "anything before register", step: SetOccupancy{days("2020-01-01", "")}, refused: "register it first"},

		{name: "move in", before: registered, step: SetOccupancy{days("2020-01-01", "")}, check: func(f *LegalFile) bool {
			return reflect.DeepEqual(f.Occupancies(), []Occupancy{{days("2020-01-01", "")}})
		}},
		{name: "the next customer ends the open occupancy", before: lived, step: SetOccupancy{days("2025-03-15", "")}, check: func(f *LegalFile) bool {
			return reflect.DeepEqual(f.Occupancies(), []Occupancy{{days("2020-01-01", "2025-03-15")}, {days("2025-03-15", "")}})
		}},
		{name: "move out", before: lived, step: SetOccupancy{days("2020-01-01", "2025-03-15")}, check: func(f *LegalFile) bool {
			return reflect.DeepEqual(f.Occupancies(), []Occupancy{{days("2020-01-01", "2025-03-15")}})
		}},
		{name: "an occupancy of the past", before: lived, step: SetOccupancy{days("2018-01-01", "2020-01-01")}, check: func(f *LegalFile) bool {
			return reflect.DeepEqual(f.Occupancies(), []Occupancy{{days("2018-01-01", "2020-01-01")}, {days("2020-01-01", "")}})
		}},
		{name: "the same occupancy again", before: lived, step: SetOccupancy{days("2020-01-01", "")}, refused: "registered already"},
		{name: "an occupancy that overlaps a later one", before: lived, step: SetOccupancy{days("2018-01-01", "2020-01-02")}, refused: "overlaps an occupancy from 2020-01-01"},
		{name: "an occupancy inside a closed one", before: append(lived[:2:2], SetOccupancy{days("2020-01-01", "2025-01-01")}),
			step: SetOccupancy{days("2024-12-31", "")}, refused: "overlaps an occupancy from 2020-01-01 to 2025-01-01"},
		{name: "an occupancy reversed", before: registered, step: SetOccupancy{days("2020-01-02", "2020-01-01")}, refused: "end after they start"},
		{name: "an occupancy before 1970", before: registered, step: SetOccupancy{meter.DayRange{From: -1, To: 5}}, refused: "1970"},

		{name: "supply", before: registered, step: SetSupply{alpha, days("2024-01-01", "")}, check: func(f *LegalFile) bool {
			return reflect.DeepEqual(f.SupplyPeriods(), []SupplyPeriod{{alpha, days("2024-01-01", "")}}) && f.Relates(alpha)
		}},
		{name: "a switch ends the other's open period", before: append(registered[:1:1], SetSupply{alpha, days("2024-01-01", "")}),
			step: SetSupply{beta, days("2025-07-01", "")}, check: func(f *LegalFile) bool {
				return reflect.DeepEqual(f.SupplyPeriods(), []SupplyPeriod{{alpha, days("2024-01-01", "2025-07-01")}, {beta, days("2025-07-01", "")}})
			}},
		{name: "the end of one's own open period", before: append(registered[:1:1], SetSupply{alpha, days("2024-01-01", "")}),
			step: SetSupply{alpha, days("2024-01-01", "2025-01-01")}, check: func(f *LegalFile) bool {
				return reflect.DeepEqual(f.SupplyPeriods(), []SupplyPeriod{{alpha, days("2024-01-01", "2025-01-01")}})
			}},
		{name: "one's own open period again", before: append(registered[:1:1], SetSupply{alpha, days("2024-01-01", "")}),
			step: SetSupply{alpha, days("2024-06-01", "")}, refused: "has supplied since 2024-01-01"},
		{name: "supply that starts with the other's", before: append(registered[:1:1], SetSupply{alpha, days("2024-01-01", "")}),
			step: SetSupply{beta, days("2024-01-01", "")}, refused: "overlaps a supply period from 2024-01-01"},
		{name: "supply over a closed period", before: append(registered[:1:1], SetSupply{alpha, days("2024-01-01", "2025-01-01")}),
			step: SetSupply{beta, days("2024-12-31", "")}, refused: "overlaps a supply period from 2024-01-01 to 2025-01-01"},
		{name: "supply after a closed period", before: append(registered[:1:1], SetSupply{alpha, days("2024-01-01", "2025-01-01")}),
			step: SetSupply{alpha, days("2025-01-01", "")}, check: func(f *LegalFile) bool { return len(f.SupplyPeriods()) == 2 }},
		{name: "supply by nobody", before: registered, step: SetSupply{meter.GLN{}, days("2024-01-01", "")}, refused: "no supplier"},

		{name: "consent", before: lived, step: grant(1), check: func(f *LegalFile) bool {
			c := f.Consents()[0]
			return c.State == ConsentActive && c.Occupancy == day("2020-01-01") && c.Answered.At.Equal(f.SealedAt()) &&
				c.ValidFrom.Equal(f.SealedAt()) && c.Revoked.IsZero() && f.Relates(alpha)
		}},
		{name: "consent to who does not supply yet", before: lived, step: grant(1, func(g *GrantConsent) { g.Supplier = gamma }),
			check: func(f *LegalFile) bool { return f.Relates(gamma) }},
		{name: "consent for the classes in any order", before: lived, step: grant(1, func(g *GrantConsent) { g.Classes = []meter.Class{2, 1, 2} }),
			check: func(f *LegalFile) bool {
				return reflect.DeepEqual(f.Consents()[0].Classes, []meter.Class{1, 2})
			}},
		{name: "consent id twice", before: append(lived[:2:2], grant(1)), step: grant(1), refused: "new id"},
		{name: "consent of nobody", before: registered, step: grant(1), refused: "set the occupancy first"},
		{name: "consent after the move out", before: append(registered[:1:1], SetOccupancy{days("2020-01-01", "2025-01-01")}), step: grant(1),
			refused: "no customer occupies the metering point on 2026-01-05"},
		{name: "consent for days before the customer lived there only", before: lived,
			step: grant(1, func(g *GrantConsent) { g.Days = days("2019-01-01", "2020-01-01") }), refused: "no day of the occupancy that began on 2020-01-01"},
		{name: "consent that reaches before the occupancy", before: lived, step: grant(1, func(g *GrantConsent) { g.Days = days("2019-01-01", "2020-02-01") }),
			check: func(f *LegalFile) bool { return f.Consents()[0].Days == days("2019-01-01", "2020-02-01") }},
		{name: "consent without id", before: lived, step: grant(0), refused: "UUID"},
		{name: "consent to nobody", before: lived, step: grant(1, func(g *GrantConsent) { g.Supplier = meter.GLN{} }), refused: "no supplier"},
		{name: "consent without purpose", before: lived, step: grant(1, func(g *GrantConsent) { g.Purpose = 0 }), refused: "purpose"},
		{name: "consent for no class", before: lived, step: grant(1, func(g *GrantConsent) { g.Classes = nil }), refused: "at least one"},
		{name: "consent for unknown class", before: lived, step: grant(1, func(g *GrantConsent) { g.Classes = []meter.Class{9} }), refused: "unknown class"},
		{name: "consent of no granularity", before: lived, step: grant(1, func(g *GrantConsent) { g.Granularity = 0 }), refused: "granularity"},
		{name: "consent without evidence", before: lived, step: grant(1, func(g *GrantConsent) { g.Evidence = "" }), refused: "evidence"},
		{name: "consent with blank evidence", before: lived, step: grant(1, func(g *GrantConsent) { g.Evidence = "   " }), refused: "blank"},
		{name: "consent with a blank before the evidence", before: lived, step: grant(1, func(g *GrantConsent) { g.Evidence = " e" }), refused: "blank"},
		{name: "consent with a blank after the evidence", before: lived, step: grant(1, func(g *GrantConsent) { g.Evidence = "e " }), refused: "blank"},
		{name: "yes with blank evidence", before: append(lived[:2:2], request(1)), step: AcceptConsent{uuid(1), " "}, refused: "blank"},
		{name: "consent with too much evidence", before: lived, step: grant(1, func(g *GrantConsent) { g.Evidence = strings.Repeat("e", 129) }), refused: "evidence"},
		{name: "consent without end", before: lived, step: grant(1, func(g *GrantConsent) { g.ValidUntil = time.Time{} }), refused: "must end"},
		{name: "consent that ended already", before: lived, step: grant(1, func(g *GrantConsent) { g.ValidUntil = t0.Add(time.Hour) }), refused: "later end"},
		{name: "consent for no day", before: lived, step: grant(1, func(g *GrantConsent) { g.Days = days("2025-01-02", "2025-01-02") }), refused: "end after they start"},

		{name: "revoke", before: append(lived[:2:2], grant(1)), step: RevokeConsent{uuid(1)}, check: func(f *LegalFile) bool {
			c := f.Consents()[0]
			return c.State == ConsentRevoked && c.Revoked.At.Equal(f.SealedAt())
		}},
		{name: "revoke what was rejected", before: append(lived[:2:2], request(1), RejectConsent{uuid(1)}), step: RevokeConsent{uuid(1)}, refused: "rejected"},
		{name: "withdraw a request", before: append(lived[:2:2], request(1)), step: RevokeConsent{uuid(1)}, check: func(f *LegalFile) bool {
			c := f.Consents()[0]
			return c.State == ConsentRevoked && c.Answered.IsZero() && !c.Given()
		}},
		{name: "request", before: lived, step: request(1), check: func(f *LegalFile) bool {
			c := f.Consents()[0]
			return c.State == ConsentRequested && c.Occupancy == day("2020-01-01") && c.Requested == by(f.SealedAt()) && c.Answered.IsZero() && !c.Given() && f.Relates(beta)
		}},
		{name: "request of nobody", before: registered, step: request(1), refused: "set the occupancy first"},
		{name: "request for days before the customer", before: append(registered[:1:1], SetOccupancy{days("2025-12-01", "")}),
			step: request(1, func(r *RequestConsent) { r.Days = days("2025-07-01", "2025-08-01") }), check: func(f *LegalFile) bool { return len(f.Consents()) == 1 }},
		{name: "request twice", before: append(lived[:2:2], request(1)), step: request(1), refused: "new id"},
		{name: "request that ended already", before: lived, step: request(1, func(r *RequestConsent) { r.ValidUntil = t0 }), refused: "later end"},
		{name: "request valid to a fraction of a second", before: lived, step: request(1, func(r *RequestConsent) { r.ValidUntil = r.ValidUntil.Add(999 * time.Millisecond) }),
			check: func(f *LegalFile) bool { return f.Consents()[0].ValidUntil.Equal(instant("2027-01-01T00:00:00Z")) }},
		{name: "yes", before: append(lived[:2:2], request(1)), step: AcceptConsent{uuid(1), "call/1"}, check: func(f *LegalFile) bool {
			c := f.Consents()[0]
			return c.State == ConsentActive && c.Answered == by(f.SealedAt()) && c.ValidFrom.Equal(f.SealedAt()) && c.Answer == "call/1" && c.Evidence == "contract/2026-3"
		}},
		{name: "yes without proof", before: append(lived[:2:2], request(1)), step: AcceptConsent{ID: uuid(1)}, refused: "evidence"},
		{name: "yes to nothing", before: append(lived[:2:2], request(1)), step: AcceptConsent{Evidence: "call/1"}, refused: "give its id"},
		{name: "yes to what nobody asked", before: append(lived[:2:2], grant(1)), step: AcceptConsent{uuid(1), "call/1"}, refused: "answered already: since"},
		{name: "yes twice", before: append(lived[:2:2], request(1), AcceptConsent{uuid(1), "call/1"}), step: AcceptConsent{uuid(1), "call/1"}, refused: "answered already: since"},
		{name: "yes after no", before: append(lived[:2:2], request(1), RejectConsent{uuid(1)}), step: AcceptConsent{uuid(1), "call/1"}, refused: "answered already: since"},
		{name: "yes to what was withdrawn", before: append(lived[:2:2], request(1), RevokeConsent{uuid(1)}), step: AcceptConsent{uuid(1), "call/1"}, refused: "ended"},
		{name: "yes after a move", before: append(lived[:2:2], request(1), SetOccupancy{days("2026-01-05", "")}), step: AcceptConsent{uuid(1), "call/1"}, refused: "moved"},
		{name: "yes of no day", before: append(registered[:1:1], SetOccupancy{days("2025-12-01", "")}, request(1, func(r *RequestConsent) { r.Days = days("2025-07-01", "2025-08-01") })),
			step: AcceptConsent{uuid(1), "call/1"}, refused: "no day of this customer"},
		{name: "yes too late", before: append(lived[:2:2], request(1, func(r *RequestConsent) { r.ValidUntil = t0.Add(30 * time.Minute) })), step: AcceptConsent{uuid(1), "call/1"}, refused: "lapsed"},
		{name: "no", before: append(lived[:2:2], request(1)), step: RejectConsent{uuid(1)}, check: func(f *LegalFile) bool {
			c := f.Consents()[0]
			return c.State == ConsentRejected && c.Answered == by(f.SealedAt()) && !c.Given() && c.Answer == ""
		}},
		{name: "no twice", before: append(lived[:2:2], request(1), RejectConsent{uuid(1)}), step: RejectConsent{uuid(1)}, refused: "answered already: since"},
		{name: "no to a consent", before: append(lived[:2:2], grant(1)), step: RejectConsent{uuid(1)}, refused: "answered already: since"},
		{name: "no after a move", before: append(lived[:2:2], request(1), SetOccupancy{days("2026-01-05", "")}), step: RejectConsent{uuid(1)}, refused: "moved"},
		{name: "no to an unknown request", before: lived, step: RejectConsent{uuid(1)}, refused: "no consent with this id"},
		{name: "no to nothing", before: lived, step: RejectConsent{}, refused: "give its id"},

		{name: "revoke twice", before: append(lived[:2:2], grant(1), RevokeConsent{uuid(1)}), step: RevokeConsent{uuid(1)}, refused: "revoked already"},
		{name: "revoke an unknown consent", before: append(lived[:2:2], grant(1)), step: RevokeConsent{uuid(2)}, refused: "no consent with this id"},
		{name: "revoke nothing", before: lived, step: RevokeConsent{}, refused: "give its id"},

		{name: "opt out", before: lived, step: SetOptOut{days("2025-09-01", "")}, check: func(f *LegalFile) bool {
			return reflect.DeepEqual(f.OptOuts(), []meter.DayRange{days("2025-09-01", "")})
		}},
		{name: "opt out of more days", before: append(lived[:2:2], SetOptOut{days("2025-09-01", "2025-10-01")}), step: SetOptOut{days("2025-08-01", "2025-09-15")},
			check: func(f *LegalFile) bool {
				return reflect.DeepEqual(f.OptOuts(), []meter.DayRange{days("2025-08-01", "2025-10-01")})
			}},
		{name: "opt out of the same days", before: append(lived[:2:2], SetOptOut{days("2025-09-01", "2025-10-01")}), step: SetOptOut{days("2025-09-02", "2025-10-01")},
			refused: "nothing to do"},
		{name: "opt in again", before: append(lived[:2:2], SetOptOut{days("2025-09-01", "")}), step: EndOptOut{day("2025-10-01")}, check: func(f *LegalFile) bool {
			return reflect.DeepEqual(f.OptOuts(), []meter.DayRange{days("2025-09-01", "2025-10-01")})
		}},
		{name: "opt in from before the opt-out", before: append(lived[:2:2], SetOptOut{days("2025-09-01", "")}), step: EndOptOut{day("2025-01-01")},
			check: func(f *LegalFile) bool { return len(f.OptOuts()) == 0 }},
		{name: "opt in without opt-out", before: append(lived[:2:2], SetOptOut{days("2025-09-01", "2025-10-01")}), step: EndOptOut{day("2025-10-01")}, refused: "nothing to do"},
		{name: "opt in before 1970", before: lived, step: EndOptOut{-5}, refused: "1970"},
		{name: "no step", before: lived, step: nil, refused: "no step"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			prev := history(t, t0, c.before...)
			var before []byte
			if prev != nil {
				before = prev.Payload()
			}
			next, err := Apply(prev, c.step, operator, t0.Add(time.Hour), amsterdam)
			if prev != nil && (!bytes.Equal(prev.encode(), before) || !bytes.Equal(prev.Payload(), before)) {
				t.Fatal("the previous version changed")
			}
			if c.refused != "" {
				wantErr(t, err, ErrStep)
				if next != nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("refused with %q, want words %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !c.check(next) {
				t.Fatalf("wrong result: %+v", next.facts)
			}
			if prev != nil && (next.Version() != prev.Version()+1 || next.Previous() != prev.Digest()) {
				t.Error("not the next version")
			}
		})
	}
}

func TestApplyRefusesBadCircumstances(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity})
	step := SetOptOut{days("2025-01-01", "")}
	for name, err := range map[string]error{
		"clock behind":  second(Apply(f, step, operator, t0.Add(-maxSkew-time.Microsecond), amsterdam)),
		"no time":       second(Apply(f, step, operator, time.Time{}, amsterdam)),
		"no zone":       second(Apply(f, step, operator, t0, nil)),
		"no actor":      second(Apply(f, step, Actor{}, t0, amsterdam)),
		"actor's lines": second(Apply(f, step, Actor{ByOperator, "a\nb"}, t0, amsterdam)),
		"file of none":  second(Apply(&LegalFile{}, step, operator, t0, amsterdam)),
	} {
		if !errors.Is(err, ErrStep) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The same microsecond is no step back.
	if _, err := Apply(f, step, operator, t0.Add(999*time.Nanosecond), amsterdam); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// The occupancy of a consent is the one on the local day: at 23:30 UTC it is
// tomorrow in Amsterdam.
func TestConsentFallsOnTheLocalDay(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity}, SetOccupancy{days("2020-01-01", "")}, SetOccupancy{days("2026-07-02", "")})
	for _, c := range []struct{ at, occupancy string }{
		{"2026-07-01T21:59:59.999999Z", "2020-01-01"}, // 23:59 on 1 July
		{"2026-07-01T22:00:00Z", "2026-07-02"},        // 00:00 on 2 July
	} {
		next, err := Apply(f, grant(1, func(g *GrantConsent) { g.Days = days("2020-01-01", "") }), operator, instant(c.at), amsterdam)
		if err != nil {
			t.Fatal(err)
		}
		if got := next.Consents()[0].Occupancy; got != day(c.occupancy) {
			t.Errorf("at %s: occupancy of %s", c.at, got)
		}
	}
}

func TestListsAreBounded(t *testing.T) {
	t.Parallel()
	base := history(t, t0, Register{home, meter.Electricity}, SetOccupancy{days("2020-01-01", "")})
	full := *base
	full.facts = base.facts.clone()
	full.occupancies = full.occupancies[:0]
	for i := range 1024 {
		r := meter.DayRange{From: meter.Day(2 * i), To: meter.Day(2*i + 1)}
		full.supply = append(full.supply, SupplyPeriod{alpha, r})
		full.optOuts = append(full.optOuts, r)
		if i < 1023 {
			full.occupancies = append(full.occupancies, Occupancy{r})
		}
		c := Consent{
			Supplier: alpha, Purpose: meter.Billing, Classes: []meter.Class{1}, Granularity: meter.P1M, Days: r,
			ValidFrom: t0, ValidUntil: t0.Add(time.Hour), Answered: by(t0), State: ConsentActive, Occupancy: day("2020-01-01"), Evidence: "e",
		}
		binary.BigEndian.PutUint64(c.ID[:], uint64(i+1))
		full.consents = append(full.consents, c)
	}
	full.occupancies = append(full.occupancies, Occupancy{days("2020-01-01", "")})
	f, err := parseLegalFile(full.encode())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []Step{
		SetOccupancy{days("2019-01-01", "2019-02-01")},
		SetSupply{alpha, days("2024-01-01", "")},
		SetOptOut{days("2024-01-01", "")},
		grant(9, func(g *GrantConsent) { g.ID[0] = 0xff }),
	} {
		if _, err := Apply(f, s, operator, t0.Add(time.Minute), amsterdam); !errors.Is(err, ErrStep) || !strings.Contains(err.Error(), "more than 1024") {
			t.Errorf("%T: %v", s, err)
		}
	}
}

func TestDecodeStepRefuses(t *testing.T) {
	t.Parallel()
	head := canonical.New(domainStep, versionStep).Encoded()
	ok := grant(1).Encode()
	half := grant(1).Encode()
	half[bytes.Index(half, []byte{0x00, 0x06, 0x63, 0xf6})+7]++
	for name, b := range map[string][]byte{
		"nothing":          nil,
		"no step":          head,
		"unknown step":     append(bytes.Clone(head), 13),
		"a tail":           append(bytes.Clone(ok), 0),
		"cut short":        ok[:len(ok)-1],
		"another type":     life(t).Payload(),
		"too long":         make([]byte, maxStep+1),
		"day 10000":        EndOptOut{lastDay + 1}.Encode(),
		"half a second":    half,
		"no GLN":           append(append(bytes.Clone(head), 11, 0, 0, 7, 0xec, 0x80, 0x43, 0xc0, 0x0e), CorrectSupply{alpha, days("2020-01-01", "")}.Encode()[len(head)+9:]...),
		"a move to no day": CorrectMove{1, -1}.Encode(),
		"a yes of nothing": AcceptConsent{uuid(1), ""}.Encode(),
		"open start":       SetOptOut{meter.DayRange{From: meter.MaxDay, To: meter.MaxDay}}.Encode(),
		"negative end":     SetOptOut{meter.DayRange{From: 3, To: math.MinInt32}}.Encode(),
		"unknown purpose":  grant(1, func(g *GrantConsent) { g.Purpose = 200 }).Encode(),
	} {
		if s, err := DecodeStep(b); !errors.Is(err, ErrStep) || s != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

// Any history of steps, good and bad: versions form a chain that anyone can
// recompute, refusals change nothing.
func TestHistoriesCanBeRecomputed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := t0
		f, err := Apply(nil, Register{home, meter.Electricity}, operator, at, amsterdam)
		if err != nil {
			t.Fatal(err)
		}
		versions := []*LegalFile{nil, f}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.Int64Range(0, int64(400*24*time.Hour)).Draw(t, "pause")))
			s := genStep().Draw(t, "step")
			back, err := DecodeStep(s.Encode())
			if err != nil {
				t.Fatalf("%#v does not come back: %v", s, err)
			}
			if !bytes.Equal(back.Encode(), s.Encode()) {
				t.Fatal("encodes differently")
			}
			next, err := Apply(f, s, operator, at, amsterdam)
			if err != nil {
				if !errors.Is(err, ErrStep) || next != nil || errors.Is(err, canonical.ErrMalformed) {
					t.Fatalf("%#v: %v", s, err)
				}
				continue
			}
			f = next
			versions = append(versions, f)
		}
		for i, v := range versions[1:] {
			again, err := Apply(versions[i], v.Step(), v.Actor(), v.SealedAt(), amsterdam)
			if err != nil || again.Digest() != v.Digest() {
				t.Fatalf("version %d recomputes differently: %v", v.Version(), err)
			}
			parsed, err := parseLegalFile(v.Payload())
			if err != nil || !reflect.DeepEqual(parsed, v) {
				t.Fatalf("version %d parses differently: %v", v.Version(), err)
			}
		}
	})
}

// genDays draws days from a few years, so that they collide.
func genDays() *rapid.Generator[meter.DayRange] {
	return rapid.Custom(func(t *rapid.T) meter.DayRange {
		from := genDay().Draw(t, "from")
		if rapid.IntRange(0, 3).Draw(t, "open") == 0 {
			return meter.DayRange{From: from, To: meter.MaxDay}
		}
		if rapid.Bool().Draw(t, "months") {
			return meter.DayRange{From: from, To: from.AddMonths(rapid.IntRange(1, 18).Draw(t, "months"))}
		}
		return meter.DayRange{From: from, To: from + meter.Day(rapid.IntRange(1, 500).Draw(t, "length"))}
	})
}

func genDay() *rapid.Generator[meter.Day] {
	return rapid.Custom(func(t *rapid.T) meter.Day {
		d := day("2024-01-01") + meter.Day(rapid.IntRange(0, 1100).Draw(t, "day"))
		if rapid.Bool().Draw(t, "first of the month") {
			return d.Month().First()
		}
		return d
	})
}

func genSupplier() *rapid.Generator[meter.GLN] {
	return rapid.SampledFrom([]meter.GLN{alpha, beta, gamma})
}

func genClasses() *rapid.Generator[[]meter.Class] {
	return rapid.SampledFrom([][]meter.Class{{1}, {2}, {1, 2}})
}

func genStep() *rapid.Generator[Step] {
	return rapid.Custom(func(t *rapid.T) Step {
		switch rapid.IntRange(1, 15).Draw(t, "kind") {
		case 1:
			return SetOccupancy{genDays().Draw(t, "days")}
		case 2, 3:
			return SetSupply{genSupplier().Draw(t, "supplier"), genDays().Draw(t, "days")}
		case 4, 5, 6:
			return GrantConsent{
				ID:          uuid(byte(rapid.IntRange(1, 6).Draw(t, "id"))),
				Supplier:    genSupplier().Draw(t, "supplier"),
				Purpose:     rapid.SampledFrom([]meter.Purpose{meter.Billing, meter.EnergyManagement, meter.EnergyManagement}).Draw(t, "purpose"),
				Classes:     genClasses().Draw(t, "classes"),
				Granularity: meter.Resolution(rapid.IntRange(1, 4).Draw(t, "granularity")),
				Days:        genDays().Draw(t, "days"),
				ValidUntil:  t0.AddDate(0, rapid.IntRange(1, 60).Draw(t, "valid for months"), 0),
				Evidence:    "dossier",
			}
		case 7:
			return RevokeConsent{uuid(byte(rapid.IntRange(1, 6).Draw(t, "id")))}
		case 8:
			return SetOptOut{genDays().Draw(t, "days")}
		case 9, 10:
			return request(byte(rapid.IntRange(1, 6).Draw(t, "id")))
		case 11:
			return AcceptConsent{uuid(byte(rapid.IntRange(1, 6).Draw(t, "id"))), "call/1"}
		case 12:
			return RejectConsent{uuid(byte(rapid.IntRange(1, 6).Draw(t, "id")))}
		case 13:
			return CorrectSupply{genSupplier().Draw(t, "supplier"), genDays().Draw(t, "days")}
		case 14:
			was := genDay().Draw(t, "was")
			return CorrectMove{was, was + meter.Day(rapid.SampledFrom([]int{-30, -1, 1, 40}).Draw(t, "later"))}
		default:
			return EndOptOut{genDay().Draw(t, "from")}
		}
	})
}

func FuzzStep(f *testing.F) {
	for _, s := range []Step{
		Register{home, meter.Gas}, SetOccupancy{days("2020-01-01", "")}, SetSupply{alpha, days("2020-01-01", "2025-07-01")},
		grant(7), RevokeConsent{uuid(7)}, SetOptOut{days("2025-09-01", "2025-10-01")}, EndOptOut{day("2025-09-15")},
		request(7), AcceptConsent{uuid(7), "call/1"}, RejectConsent{uuid(7)}, CorrectSupply{alpha, days("2020-01-01", "")}, CorrectSupply{meter.GLN{}, days("2020-01-01", "2021-01-01")},
		CorrectMove{day("2025-03-20"), day("2025-03-15")},
	} {
		f.Add(s.Encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeStep(b)
		if err != nil {
			if !errors.Is(err, ErrStep) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(s.Encode(), b) {
			t.Fatalf("re-encodes differently:\n%x\n%x", b, s.Encode())
		}
	})
}
