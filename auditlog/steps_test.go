package auditlog_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/auditlog"
	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/meter"
)

// home is a metering point of which steps are taken by token.
type home struct {
	*world
	t    *testing.T
	key  authz.Signer
	ean  meter.EAN
	file *authz.LegalFile
}

const operatorGLN = "8716867000009"

func customer(subject string) authz.Actor {
	return authz.Actor{Kind: authz.ByCustomer, Name: "https://id.test#" + subject}
}

func (h *home) supplier() authz.Actor {
	return authz.Actor{Kind: authz.BySupplier, Name: h.gln.String()}
}

var registrar = authz.Actor{Kind: authz.ByOperator, Name: "registrar"}

// next goes on to the version that a step makes, and returns it sealed.
func (h *home) next(by authz.Actor, s authz.Step) []byte {
	h.t.Helper()
	h.file = must(authz.Apply(h.file, s, by, time.Now(), h.profile.Location()))(h.t)
	return must(authz.Seal(h.file.Payload(), h.key))(h.t)
}

// alone stores a step without a record, as the registrar does.
func (h *home) alone(by authz.Actor, s authz.Step) {
	h.t.Helper()
	sealed := h.next(by, s)
	h.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, $4)`, h.ean.Int64(), int64(h.file.Version()), sealed, h.file.SealedAt())
}

// says is what an honest gateway records of a step, with the file as it is now.
func (h *home) says(by authz.Actor, action authz.ConsentAction, id [16]byte) audit.Record {
	r := audit.Record{InteractionID: newID(), At: time.Now(), Operation: audit.ConsentStep, Action: action, ConsentID: id, Supplier: h.gln, EAN: h.ean,
		Purpose: meter.EnergyManagement, Outcome: audit.Given, LegalFile: h.file.Digest(), FileVersion: h.file.Version(), Profile: h.profile.Digest()}
	if by.Kind == authz.ByCustomer {
		r.Supplier = must(meter.ParseGLN(operatorGLN))(h.t)
		r.Employee, r.Reason = by.Name, "customer on the line"
	}
	return r
}

// take stores a step with its record, as the gateway does; alter is what a
// captured one makes of the record.
func (h *home) take(by authz.Actor, s authz.Step, id [16]byte, alter func(*audit.Record)) {
	h.t.Helper()
	sealed := h.next(by, s)
	r := h.says(by, authz.ActionOf(s), id)
	if alter != nil {
		alter(&r)
	}
	key := newID()
	h.check(h.gateway.StoreStep(h.t.Context(), h.file, sealed, postgres.IdempotencyKey{Caller: r.Supplier, Key: sha256.Sum256(key[:]), Consent: id}, r))
}

// record stores a record by itself.
func (h *home) record(r audit.Record) {
	h.t.Helper()
	h.check(h.gateway.Record(h.t.Context(), r))
}

func (h *home) terms(id [16]byte) authz.RequestConsent {
	return authz.RequestConsent{ID: id, Supplier: h.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1D,
		Days: h.days, ValidUntil: time.Now().AddDate(0, 1, 0).Truncate(time.Second).UTC(), Evidence: "contract 12"}
}

// asked has the supplier ask for a consent.
func (h *home) asked() [16]byte {
	h.t.Helper()
	id := newID()
	h.take(h.supplier(), h.terms(id), id, nil)
	return id
}

func accept(id [16]byte) authz.Step { return authz.AcceptConsent{ID: id, Evidence: "by phone"} }

// TestStepRecords: what the access log says of the steps of consents is held to
// the sealed legal files.
func TestStepRecords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := software{must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	w.extra = []*ecdsa.PublicKey{&key.PublicKey}
	kim, sam := customer("kim"), customer("sam")
	other := must(meter.ParseGLN("8712345000011"))(t)
	type details map[auditlog.What][]string
	const byAnother = "somebody else took the step"
	cases := map[string]struct {
		alter func(h *home)
		after func(h *home) // once all is logged
		want  details
	}{
		"a life of consents": {alter: func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, nil)
			h.take(h.supplier(), authz.RevokeConsent{ID: a}, a, nil)
			b := h.asked()
			h.take(sam, authz.RejectConsent{ID: b}, b, nil)
			c := h.asked()
			h.take(h.supplier(), authz.RevokeConsent{ID: c}, c, nil) // withdrawn
			d := newID()
			h.take(kim, authz.GrantConsent(h.terms(d)), d, nil)
			h.take(sam, authz.RevokeConsent{ID: d}, d, nil)
			e := h.asked()
			h.alone(registrar, authz.RevokeConsent{ID: e})
		}},
		"requests sent again": {alter: func(h *home) {
			a, b := h.asked(), newID()
			h.record(h.says(h.supplier(), authz.ActionRequest, a))
			h.take(kim, accept(a), a, nil)
			h.record(h.says(h.supplier(), authz.ActionRequest, a))
			h.record(h.says(kim, authz.ActionGrant, a))
			h.take(sam, authz.GrantConsent(h.terms(b)), b, nil)
			h.alone(registrar, authz.SetOptOut{Days: meter.DayRange{From: h.days.From - 50, To: h.days.From - 40}})
			h.take(h.supplier(), authz.RevokeConsent{ID: a}, a, nil)
			h.record(h.says(h.supplier(), authz.ActionRequest, a))
			h.record(h.says(kim, authz.ActionGrant, a))
			h.record(h.says(sam, authz.ActionRegister, b))
			h.record(h.says(h.supplier(), authz.ActionRevoke, a))
			c := h.asked()
			h.take(kim, authz.RejectConsent{ID: c}, c, nil)
			h.take(sam, authz.RevokeConsent{ID: b}, b, nil)
			h.record(h.says(kim, authz.ActionReject, c))
		}},
		"steps that were not taken, and recorded so": {alter: func(h *home) {
			a := h.asked()
			r := h.says(sam, authz.ActionGrant, a)
			r.Outcome = audit.Refused
			h.record(r)
			r = h.says(sam, authz.ActionGrant, a)
			r.Outcome, r.LegalFile, r.FileVersion = audit.Failed, [32]byte{}, 0
			h.record(r)
			r = h.says(sam, authz.ActionRevoke, newID())
			r.EAN, r.Purpose, r.Outcome, r.LegalFile, r.FileVersion = meter.EAN{}, 0, audit.NoRelation, [32]byte{}, 0
			h.record(r)
		}},

		"put down to another employee": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, func(r *audit.Record) { r.Employee = sam.Name })
		}, nil, details{auditlog.StepOtherwise: {byAnother}, auditlog.RecordedNotTaken: {byAnother}}},
		"put down to the supplier": {func(h *home) {
			a := newID()
			h.take(kim, authz.GrantConsent(h.terms(a)), a, func(r *audit.Record) { r.Supplier, r.Employee, r.Reason = h.gln, "", "" })
		}, nil, details{auditlog.StepOtherwise: {byAnother}, auditlog.RecordedNotTaken: {byAnother}}},
		"put down to another supplier": {func(h *home) {
			a := newID()
			h.take(h.supplier(), h.terms(a), a, func(r *audit.Record) { r.Supplier = other })
		}, nil, details{auditlog.StepOtherwise: {byAnother}, auditlog.RecordedNotTaken: {byAnother}}},
		"a supplier's step put down to an employee": {func(h *home) {
			a := newID()
			h.take(h.supplier(), h.terms(a), a, func(r *audit.Record) { r.Employee, r.Reason = kim.Name, "customer on the line" })
		}, nil, details{auditlog.StepOtherwise: {byAnother}, auditlog.RecordedNotTaken: {byAnother}}},
		"told as another step": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, func(r *audit.Record) { r.Action = authz.ActionReject })
		}, nil, details{auditlog.StepOtherwise: {"its record tells of another step"}, auditlog.RecordedNotTaken: {"no such step of the consent was taken"}}},
		"a registration told as a yes to a request": {func(h *home) {
			a := newID()
			h.take(kim, authz.GrantConsent(h.terms(a)), a, func(r *audit.Record) { r.Action = authz.ActionGrant })
		}, nil, details{auditlog.StepOtherwise: {"its record tells of another step"}, auditlog.RecordedNotTaken: {"no such step of the consent was taken"}}},
		"told as of another consent, as if that had been sent again": {func(h *home) {
			a, b := h.asked(), h.asked()
			h.take(kim, accept(a), a, nil)
			h.take(kim, accept(b), b, func(r *audit.Record) { r.ConsentID = a })
		}, nil, details{auditlog.StepOtherwise: {"its record tells of another consent"}}},
		"told as of a consent that is not": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, func(r *audit.Record) { r.ConsentID = newID() })
		}, nil, details{auditlog.StepOtherwise: {"its record tells of another consent"}, auditlog.RecordedNotTaken: {"no such consent is in the legal file"}}},
		"told with another purpose": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, func(r *audit.Record) { r.Purpose = meter.Billing })
		}, nil, details{auditlog.StepOtherwise: {"the consent is for another purpose"}, auditlog.RecordedNotTaken: {"the consent is for another purpose"}}},
		"told of the version before": {func(h *home) {
			a := h.asked()
			before := h.file
			h.take(kim, accept(a), a, func(r *audit.Record) { r.LegalFile, r.FileVersion = before.Digest(), before.Version() })
		}, nil, details{auditlog.StepOtherwise: {"its record names another legal file"}, auditlog.RecordedNotTaken: {"no such step of the consent was taken"}}},

		"left out": {func(h *home) {
			a := h.asked()
			h.alone(kim, accept(a))
			h.alone(h.supplier(), authz.RevokeConsent{ID: a})
		}, nil, details{auditlog.StepNotRecorded: {"no record came with it", "no record came with it"}}},
		"left out, and made good later": {func(h *home) {
			a := h.asked()
			h.alone(kim, accept(a))
			h.record(h.says(kim, authz.ActionGrant, a))
		}, nil, details{auditlog.StepNotRecorded: {"no record came with it"}}},
		"said to have failed": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, func(r *audit.Record) { r.Outcome, r.LegalFile, r.FileVersion = audit.Failed, [32]byte{}, 0 })
		}, nil, details{auditlog.StepNotRecorded: {"the record that came with it is not of a step that was taken"}}},
		"told as a look at the consents": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, func(r *audit.Record) { r.Operation, r.Action, r.Purpose = audit.Consents, 0, 0 })
		}, nil, details{auditlog.StepNotRecorded: {"the record that came with it is not of a step that was taken"}}},
		"told twice at once": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, nil)
			h.record(h.says(kim, authz.ActionGrant, a))
		}, func(h *home) {
			h.tamper(`UPDATE access_log SET arrived = (SELECT max(arrived) FROM legal_file WHERE ean = $1) WHERE ean = $1 AND arrived > (SELECT max(arrived) FROM legal_file WHERE ean = $1)`, h.ean.Int64())
		}, details{auditlog.StepOtherwise: {"more than one record came with it"}}},
		"its record deleted": {func(h *home) { h.asked() }, func(h *home) {
			h.tamper(`DELETE FROM access_log WHERE ean = $1`, h.ean.Int64())
		}, details{auditlog.StepNotRecorded: {"no record came with it"}, auditlog.RowMissing: {""}}},

		"told again by another employee": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, nil)
			h.record(h.says(sam, authz.ActionGrant, a))
		}, nil, details{auditlog.RecordedNotTaken: {byAnother}}},
		"a step of nobody's": {func(h *home) {
			a := h.asked()
			h.record(h.says(kim, authz.ActionGrant, a))
			h.record(h.says(kim, authz.ActionRevoke, a))
			h.record(h.says(kim, authz.ActionRegister, a))
		}, nil, details{auditlog.RecordedNotTaken: {"no such step of the consent was taken", "no such step of the consent was taken", "no such step of the consent was taken"}}},
		"told before it was taken": {func(h *home) {
			a := h.asked()
			r := h.says(kim, authz.ActionGrant, a)
			h.take(kim, accept(a), a, nil)
			h.record(r)
		}, nil, details{auditlog.RecordedNotTaken: {"no such step of the consent was taken"}}},
		"a yes told as a no, once it was taken back": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, nil)
			h.take(kim, authz.RevokeConsent{ID: a}, a, nil)
			h.record(h.says(kim, authz.ActionReject, a))
		}, nil, details{auditlog.RecordedNotTaken: {"no such step of the consent was taken"}}},
		"a no told as a yes": {func(h *home) {
			a := h.asked()
			h.take(kim, authz.RejectConsent{ID: a}, a, nil)
			h.record(h.says(kim, authz.ActionGrant, a))
		}, nil, details{auditlog.RecordedNotTaken: {"no such step of the consent was taken"}}},
		"a yes told as a registration": {func(h *home) {
			a := h.asked()
			h.take(kim, accept(a), a, nil)
			h.record(h.says(kim, authz.ActionRegister, a))
		}, nil, details{auditlog.RecordedNotTaken: {"no such step of the consent was taken"}}},
		"what the registrar did, put down to an employee": {func(h *home) {
			a := h.asked()
			h.alone(registrar, authz.RevokeConsent{ID: a})
			h.record(h.says(kim, authz.ActionRevoke, a))
		}, nil, details{auditlog.RecordedNotTaken: {byAnother}}},
		"a registrar's opt-out told as a revocation": {func(h *home) {
			h.alone(registrar, authz.SetOptOut{Days: meter.DayRange{From: h.days.From - 50, To: h.days.From - 40}})
			h.record(h.says(kim, authz.ActionRevoke, newID()))
		}, nil, details{auditlog.RecordedNotTaken: {"no such consent is in the legal file"}}},
	}
	homes, many := map[string]*home{}, 0
	register := func() *home {
		many++
		h := &home{world: w, t: t, key: key, ean: must(meter.ParseEAN(checked(fmt.Sprintf("87168714%09d", many+100))))(t)}
		open := meter.DayRange{From: w.days.From - 100, To: meter.MaxDay}
		h.alone(registrar, authz.Register{EAN: h.ean, Commodity: meter.Electricity})
		h.alone(registrar, authz.SetOccupancy{Days: open})
		h.alone(registrar, authz.SetSupply{Supplier: w.gln, Days: open})
		return h
	}
	// More than a page before, between and after.
	for i, name := range slices.Sorted(maps.Keys(cases)) {
		for h := register(); i%2 == 0 && h.file.Version() < 45; {
			h.asked()
		}
		homes[name] = register()
		cases[name].alter(homes[name])
	}
	_, stop := w.auditing(w.store, w.servers(), w.export)
	w.settled()
	stop()
	for name, c := range cases {
		if c.after != nil {
			c.after(homes[name])
		}
	}
	r := w.verify()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := homes[name]
			got := details{}
			for _, f := range r.Findings {
				if f.EAN != h.ean.String() {
					continue
				}
				got[f.What] = append(got[f.What], f.Detail)
				switch f.What {
				case auditlog.StepNotRecorded, auditlog.StepOtherwise:
					if f.Version < 4 || f.At.IsZero() {
						t.Errorf("which version: %+v", f)
					}
				case auditlog.RecordedNotTaken:
					if f.Version < 4 || f.Interaction == "" || f.Leaf == nil {
						t.Errorf("which record: %+v", f)
					}
				}
				if strings.Contains(f.String(), "id.test") {
					t.Errorf("names an employee: %s", f)
				}
			}
			if !maps.EqualFunc(got, c.want, slices.Equal) {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
	ours := map[string]bool{}
	for _, h := range homes {
		ours[h.ean.String()] = true
	}
	for _, f := range r.Findings {
		if !f.What.IsNotice() && !ours[f.EAN] {
			t.Errorf("found as well: %+v", f)
		}
	}
}
