package cryptoserver_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/internal/authn"
	"kluis/meter"
)

// TestRowsTamperedWith: whatever a writer of the database does to a row, the
// block does not open, is reported as damaged, and costs nothing but itself.
func TestRowsTamperedWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	// A neighbour of the same supplier with the same readings and keys for the
	// same month.
	n := w.electricity(m.old, m.new, [16]byte{2})
	var blocks []envelope.PlainBlock
	for d := day("2024-04-01"); d <= day("2024-05-01"); d++ {
		blocks = append(blocks, w.registerBlock(importLow, d))
	}
	n.store(blocks...)

	target := day("2024-04-10")
	find := func(u *client.Unit, f meter.FieldCode, d meter.Day) *envelope.SealedBlock {
		i := slices.IndexFunc(u.Blocks, func(b envelope.SealedBlock) bool { return b.Field == f && b.Day == d })
		return &u.Blocks[i]
	}
	neighbour := func(d meter.Day) (envelope.SealedBlock, envelope.KeyRecord) {
		i := slices.IndexFunc(n.rows, func(b envelope.SealedBlock) bool { return b.Day == d })
		return n.rows[i], n.keys[n.rows[i].Key]
	}
	flip := func(at int) func(*client.Unit, *envelope.SealedBlock) {
		return func(_ *client.Unit, b *envelope.SealedBlock) {
			b.Ciphertext[(at+len(b.Ciphertext))%len(b.Ciphertext)] ^= 0x10
		}
	}
	for _, c := range []struct {
		name   string
		field  meter.FieldCode
		change func(u *client.Unit, b *envelope.SealedBlock)
		token  bool // the token is asked; otherwise the attempt ends before it
	}{
		{"ciphertext of another day", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			b.Ciphertext = bytes.Clone(find(u, importLow, target+1).Ciphertext)
		}, true},
		{"ciphertext of another field", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			b.Ciphertext = bytes.Clone(find(u, importNormal, target).Ciphertext)
		}, true},
		{"row of another metering point with its key", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			row, key := neighbour(target)
			row.Key = len(u.Keys)
			u.Keys = append(u.Keys, key)
			*b = row
		}, false},
		{"row and relabelled key of another metering point", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			row, key := neighbour(target)
			key.EAN = m.ean
			row.Key = len(u.Keys)
			u.Keys = append(u.Keys, key)
			*b = row
		}, true},
		{"data key swapped with a neighbour's", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			_, key := neighbour(target)
			own := u.Keys[b.Key]
			own.Wrapped = key.Wrapped
			b.Key = len(u.Keys)
			u.Keys = append(u.Keys, own)
		}, true},
		{"neighbour's key record under the own id", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			_, key := neighbour(target)
			key.ID = u.Keys[b.Key].ID
			b.Key = len(u.Keys)
			u.Keys = append(u.Keys, key)
		}, false},
		{"key of another month", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			b.Key = m.key(envelope.KeySpec{Class: meter.Registers, Month: target.Month() - 1})
		}, false},
		{"key of another class", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			b.Key = m.key(envelope.KeySpec{Class: meter.Intervals, Month: target.Month()})
		}, false},
		{"key record of another class by label", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			own := u.Keys[b.Key]
			own.Class = meter.Intervals
			b.Key = len(u.Keys)
			u.Keys = append(u.Keys, own)
		}, false},
		{"key record of another month by label", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			own := u.Keys[b.Key]
			own.Month++
			b.Key = len(u.Keys)
			u.Keys = append(u.Keys, own)
		}, false},
		{"wrapped key cut", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			own := u.Keys[b.Key]
			own.Wrapped = own.Wrapped[:32]
			b.Key = len(u.Keys)
			u.Keys = append(u.Keys, own)
		}, false},
		{"bit of the wrapped key", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			own := u.Keys[b.Key]
			own.Wrapped = bytes.Clone(own.Wrapped)
			own.Wrapped[7] ^= 1
			b.Key = len(u.Keys)
			u.Keys = append(u.Keys, own)
		}, true},
		{"an epoch that was never active", importLow, func(u *client.Unit, b *envelope.SealedBlock) {
			own := u.Keys[b.Key]
			own.Epoch = 7
			b.Key = len(u.Keys)
			u.Keys = append(u.Keys, own)
		}, true},
		{"key row deleted", importLow, func(_ *client.Unit, b *envelope.SealedBlock) { b.Key = envelope.NoKey }, false},
		{"no such key", importLow, func(u *client.Unit, b *envelope.SealedBlock) { b.Key = len(u.Keys) }, false},
		{"another version", importLow, func(_ *client.Unit, b *envelope.SealedBlock) { b.Version = 2 }, true},
		{"version zero", importLow, func(_ *client.Unit, b *envelope.SealedBlock) { b.Version = 0 }, false},
		{"another resolution", importIntervals, func(_ *client.Unit, b *envelope.SealedBlock) { b.Resolution = meter.PT1H }, true},
		{"a resolution the field does not have", importLow, func(_ *client.Unit, b *envelope.SealedBlock) { b.Resolution = meter.PT15M }, false},
		{"bit of the magic", importLow, flip(0), false},
		{"bit of the version", importLow, flip(2), false},
		{"bit of the suite", importLow, flip(3), false},
		{"bit of the key id", importLow, flip(5), false},
		{"bit of the IV length", importLow, flip(20), false},
		{"bit of the IV", importLow, flip(22), true},
		{"bit of the ciphertext", importLow, flip(34), true},
		{"bit of the tag", importLow, flip(-1), true},
		{"cut", importLow, func(_ *client.Unit, b *envelope.SealedBlock) { b.Ciphertext = b.Ciphertext[:len(b.Ciphertext)-1] }, true},
		{"empty", importLow, func(_ *client.Unit, b *envelope.SealedBlock) { b.Ciphertext = nil }, false},
	} {
		q := m.ask(m.new, energy(days("2024-04-09", "2024-04-12"), importLow, importNormal, importIntervals))
		u := &q.Units[0]
		index := slices.IndexFunc(u.Blocks, func(b envelope.SealedBlock) bool { return b.Field == c.field && b.Day == target })
		sent := len(u.Blocks)
		w.open.opened()
		c.change(u, &u.Blocks[index])
		got := w.opened(q)
		if got.Err != nil {
			t.Errorf("%s: %v", c.name, got.Err)
			continue
		}
		if want := []client.Fault{{Block: index, Reason: client.Damaged}}; !slices.Equal(got.Faults, want) {
			t.Errorf("%s: faults %v, want %v", c.name, got.Faults, want)
		}
		if want := []authz.Withheld{{Field: c.field, Days: meter.DayRange{From: target, To: target + 1}, Reason: meter.Damaged}}; !slices.Equal(got.Withheld, want) {
			t.Errorf("%s: withheld %v", c.name, got.Withheld)
		}
		for f, all := range map[meter.FieldCode]map[meter.Day][]meter.Value{
			importLow: valuesOf(got, importLow), importNormal: valuesOf(got, importNormal), importIntervals: valuesOf(got, importIntervals),
		} {
			for d, values := range all {
				for i, v := range values {
					want := register(f, d)
					if f == importIntervals {
						want = interval(f, d, i)
					}
					if f == c.field && d == target {
						want = meter.Null
					}
					if v != want {
						t.Fatalf("%s: field %d on %s: %d, want %d", c.name, f, d, v, want)
					}
				}
			}
		}
		asked := sent
		if !c.token {
			asked--
		}
		if n := w.open.opened(); n != asked {
			t.Errorf("%s: the token was asked to open %d of %d blocks, want %d", c.name, n, sent, asked)
		}
		if r, err := envelope.ParseReceipt(got.Receipt); err != nil || r.Damaged != 1 || int(r.Opened) != sent-1 {
			t.Errorf("%s: receipt %+v, %v", c.name, r, err)
		}
	}

	// An aggregate that needs the damaged block is null.
	r := energy(days("2024-04-01", "2024-05-01"), importIntervals)
	r.Resolution = meter.P1M
	q := m.ask(m.new, r)
	flip(40)(nil, find(&q.Units[0], importIntervals, target))
	got := w.opened(q)
	if v := valuesOf(got, importIntervals)[day("2024-04-01")]; len(v) != 1 || v[0] != meter.Null {
		t.Errorf("a month with a damaged day: %v", v)
	}

	// An epoch that a key may have and the token does not hold is not damage.
	w.seal.claim(7)
	w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 7})
	q = m.ask(m.new, energy(days("2024-04-09", "2024-04-12"), importLow))
	q.Units[0].Keys[q.Units[0].Blocks[0].Key].Epoch = 7
	if _, err := w.as("gateway").Open(t.Context(), q); !errors.Is(err, client.ErrUnknownEpoch) || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("unknown epoch: %v", err)
	}
	// One that was passed over never wrapped any: a row that names it spoils
	// itself and no whole call.
	q.Units[0].Keys[q.Units[0].Blocks[0].Key].Epoch = 5
	if got := w.opened(q); len(got.Faults) != len(q.Units[0].Blocks) || got.Faults[0].Reason != client.Damaged {
		t.Errorf("an epoch that was never active: %+v", got.Faults)
	}
	if up := w.counter("kluis_cryptoserver_token_up", "role", "open"); up != 1 {
		t.Error("one bad row took the token down")
	}
}

// TestGatewayAsksForMore: the evidence decides, not the gateway.
func TestGatewayAsksForMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-09", "2024-04-12"), importLow))
	u := &q.Units[0]
	honest := len(u.Blocks)
	for _, row := range m.rows { // other days and other fields
		if !slices.ContainsFunc(u.Blocks, func(b envelope.SealedBlock) bool { return b.Field == row.Field && b.Day == row.Day }) {
			u.Blocks = append(u.Blocks, row)
		}
	}
	w.open.opened()
	got := w.opened(q)
	if n := w.open.opened(); n != honest {
		t.Errorf("the token was asked to open %d blocks, %d are granted", n, honest)
	}
	more := len(u.Blocks) - honest
	for i, f := range got.Faults {
		if f != (client.Fault{Block: honest + i, Reason: client.OutsideGrant}) {
			t.Fatalf("fault %d: %v", i, f)
		}
	}
	if len(got.Faults) != more || len(got.Series) != 1 || len(got.Withheld) != 0 {
		t.Errorf("%d faults, want %d; %d series", len(got.Faults), more, len(got.Series))
	}
	if n := w.counter("kluis_cryptoserver_blocks_total", "outcome", "outside_grant"); n != float64(more) {
		t.Errorf("the metric counts %v, want %d", n, more)
	}

	// The same field and day twice: the first counts, the second is refused.
	q = m.ask(m.new, energy(days("2024-04-09", "2024-04-12"), importLow))
	q.Units[0].Blocks = append(q.Units[0].Blocks, q.Units[0].Blocks[0])
	got = w.opened(q)
	if want := []client.Fault{{Block: honest, Reason: client.Duplicate}}; !slices.Equal(got.Faults, want) {
		t.Errorf("duplicate: %v", got.Faults)
	}
}

// TestRegisterOfIntervals: whoever may have intervals does not have register
// reads with them for the asking, though they are in the same block. Without
// a rule for daily reads no block is opened.
func TestRegisterOfIntervals(t *testing.T) {
	t.Parallel()
	yaml := string(meter.NL())
	at := strings.Index(yaml, "- id: nl-daily")
	withoutDaily, err := meter.ParseProfile([]byte(yaml[:at] + strings.Replace(yaml[at:], "enabled: true", "enabled: false", 1)))
	if err != nil {
		t.Fatal(err)
	}
	target := day("2024-04-10")
	for _, c := range []struct {
		name  string
		opts  []option
		given bool
	}{
		{"with daily reads", nil, true},
		{"without", []option{func(w *world, c *cryptoserver.Config) { w.profile, c.Profile = withoutDaily, withoutDaily }}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.opts...)
			by := w.supplier("871234500001", "New Energy")
			p := w.electricity(w.supplier("871234500000", "Old Energy"), by, [16]byte{1})
			block := w.intervalBlock(importIntervals, target, meter.PT15M)
			block.Block.Start = 5000
			p.store(block)
			r := energy(meter.DayRange{From: target, To: target + 1}, importIntervals)
			r.Kind = meter.Register
			w.open.opened()
			got := w.opened(p.all(p.ask(by, r)))
			opened, values := w.open.opened(), valuesOf(got, importIntervals)[target]
			if c.given {
				if opened != 1 || len(values) != 96 || values[0] != 5000 || values[1] != 5000+interval(importIntervals, target, 0) || len(got.Withheld) != 0 {
					t.Errorf("%d opened, %v, withheld %v", opened, values, got.Withheld)
				}
				return
			}
			if want := []authz.Withheld{{Field: importIntervals, Days: r.Days, Reason: meter.KindNotAvailable}}; opened != 0 || len(got.Series) != 0 || !slices.Equal(got.Withheld, want) {
				t.Errorf("%d opened, %v, withheld %v", opened, values, got.Withheld)
			}
			// Their consumption is another matter.
			r.Kind = meter.Consumption
			if got := w.opened(p.ask(by, r)); len(valuesOf(got, importIntervals)[target]) != 96 {
				t.Errorf("no consumption: %v", got.Withheld)
			}
		})
	}
}

// TestEvidence: each piece of evidence, forged or another's.
func TestEvidence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	r := energy(days("2024-04-01", "2024-05-01"), importLow, importIntervals)
	good := m.ask(m.new, r)
	if got := w.opened(good); got.Err != nil || len(got.Series) != 2 {
		t.Fatalf("the honest call: %+v", got)
	}
	stranger := w.supplier("871234500002", "Stranger")
	other := w.electricity(stranger, m.old, [16]byte{3}) // neither old nor new supplies it to m.new
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	file, err := keys.LegalFile(m.file)
	w.must(err)
	record, err := keys.Supplier(m.new.record)
	w.must(err)
	forge := func(payload []byte, as authz.KeyID) []byte {
		b, err := authz.Seal(payload, softSigner{forger, as})
		w.must(err)
		return b
	}
	flipped := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[(at+len(b))%len(b)] ^= 1
		return b
	}
	pinned := authz.KeyIDOf(w.hsm.SealKeys[0])
	own := authz.KeyIDOf(&forger.PublicKey)
	invented, err := authz.Apply(file, authz.GrantConsent{
		ID: [16]byte{9}, Supplier: m.old.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
		Granularity: meter.PT15M, Days: days("2024-01-01", "2025-01-01"), ValidUntil: baseTime.AddDate(1, 0, 0), Evidence: "none",
	}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, w.clock.now(), w.profile.Location())
	w.must(err)

	// A legal file that does not verify: the unit is refused.
	for name, b := range map[string][]byte{
		"altered payload":                       flipped(m.file, len(m.file)/2),
		"altered signature":                     flipped(m.file, -1),
		"altered key id":                        flipped(m.file, 18),
		"cut":                                   m.file[:len(m.file)-1],
		"none":                                  nil,
		"re-signed with another key":            forge(file.Payload(), own),
		"re-signed with another key, pinned id": forge(file.Payload(), pinned),
		"invented consent":                      forge(invented.Payload(), pinned),
		"a supplier record":                     m.new.record,
	} {
		q := good
		q.Units = slices.Clone(good.Units)
		q.Units[0].LegalFile = b
		w.open.opened()
		got := w.opened(q)
		if !errors.Is(got.Err, client.ErrEvidence) || got.Series != nil || got.Receipt != nil {
			t.Errorf("legal file, %s: %+v", name, got)
		}
		if n := w.open.opened(); n != 0 {
			t.Errorf("legal file, %s: the token opened %d blocks", name, n)
		}
	}

	// Another's legal file: no relation; or blocks that are not of it.
	q := good
	q.Units = slices.Clone(good.Units)
	q.Units[0].LegalFile = other.file
	w.open.opened()
	if got := w.opened(q); !errors.Is(got.Err, authz.ErrNoRelation) {
		t.Errorf("legal file of a stranger's customer: %+v", got)
	}
	mine := w.electricity(m.old, m.new, [16]byte{4})
	q.Units[0].LegalFile, q.Units[0].Request.EAN = mine.file, mine.ean
	if got := w.opened(q); got.Err != nil || len(got.Faults) != len(good.Units[0].Blocks) {
		t.Errorf("rows of one metering point under the file of another: %+v", got.Faults)
	}
	if n := w.open.opened(); n != 0 {
		t.Errorf("the token opened %d blocks under another's legal file", n)
	}

	// Who calls: token and supplier record, forged, another's or outdated.
	revoked := *m.new
	revoked.facts.Certificates = slices.Clone(m.new.facts.Certificates)
	revoked.facts.Certificates[0].RevokedAt = baseTime
	suspended := *m.new
	suspended.facts.Suspended = true
	unscoped := *m.new
	unscoped.facts.Scopes = []string{"other"}
	elsewhere := *m.new
	elsewhere.facts.Certificates = []authz.Certificate{{Thumbprint: [32]byte{1}, NotAfter: baseTime.AddDate(1, 0, 0)}}
	for _, p := range []*party{&revoked, &suspended, &unscoped, &elsewhere} {
		w.clock.advance(time.Millisecond)
		p.record, err = w.as("registrar").SealSupplier(t.Context(), m.new.record, p.facts)
		w.must(err)
	}
	forgedFacts, err := authz.NewSupplier(record, m.new.facts, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, w.clock.now())
	w.must(err)
	now := w.clock.now().Unix()
	claims := fmt.Sprintf(`{"iss":%q,"sub":%q,"aud":%q,"iat":%d,"exp":%d,"jti":"x","client_id":%q,"scope":"readings:read","cnf":{"x5t#S256":%q}}`,
		issuerURL, m.new.gln, audience, now, now+300, m.new.gln, base64.RawURLEncoding.EncodeToString(m.new.leaf[:]))
	for _, c := range []struct {
		name   string
		change func(*client.OpenRequest)
		want   error
	}{
		{"no token", func(q *client.OpenRequest) { q.AccessToken = "" }, client.ErrTokenRefused},
		{"huge token", func(q *client.OpenRequest) { q.AccessToken = strings.Repeat("a", 100<<10) }, client.ErrTokenRefused},
		{"alg none", func(q *client.OpenRequest) {
			q.AccessToken = jwt(`{"typ":"at+jwt","alg":"none","kid":"x"}`, claims, nil)
		}, client.ErrTokenRefused},
		{"HS256 with the public key", func(q *client.OpenRequest) {
			q.AccessToken = hs256(w, claims)
		}, client.ErrTokenRefused},
		{"altered token", func(q *client.OpenRequest) { q.AccessToken = string(flipped([]byte(q.AccessToken), -20)) }, client.ErrTokenRefused},
		{"supplier record of another", func(q *client.OpenRequest) { q.SupplierRecord = stranger.record }, client.ErrSupplierRefused},
		{"token of another", func(q *client.OpenRequest) { q.AccessToken = w.token(stranger) }, client.ErrSupplierRefused},
		{"no supplier record", func(q *client.OpenRequest) { q.SupplierRecord = nil }, client.ErrSupplierRefused},
		{"altered supplier record", func(q *client.OpenRequest) { q.SupplierRecord = flipped(m.new.record, len(m.new.record)/2) }, client.ErrSupplierRefused},
		{"forged supplier record", func(q *client.OpenRequest) { q.SupplierRecord = forge(forgedFacts.Payload(), pinned) }, client.ErrSupplierRefused},
		{"a legal file as supplier record", func(q *client.OpenRequest) { q.SupplierRecord = m.file }, client.ErrSupplierRefused},
		{"certificate revoked", func(q *client.OpenRequest) { q.SupplierRecord = revoked.record }, client.ErrSupplierRefused},
		{"suspended", func(q *client.OpenRequest) { q.SupplierRecord = suspended.record }, client.ErrSupplierRefused},
		{"certificate not registered", func(q *client.OpenRequest) { q.SupplierRecord = elsewhere.record }, client.ErrSupplierRefused},
		{"scope withdrawn", func(q *client.OpenRequest) { q.SupplierRecord = unscoped.record }, client.ErrSupplierRefused},
		{"another profile", func(q *client.OpenRequest) { q.Profile[0] ^= 1 }, client.ErrProfileMismatch},
	} {
		q := m.ask(m.new, r)
		c.change(&q)
		w.open.opened()
		_, err := w.as("gateway").Open(t.Context(), q)
		if !errors.Is(err, c.want) || !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: %v", c.name, err)
		}
		if n := w.open.opened(); n != 0 {
			t.Errorf("%s: the token opened %d blocks", c.name, n)
		}
	}

}

// TestExpiry: the server's own clock ends tokens and consents.
func TestExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	r := energy(days("2024-04-01", "2024-05-01"), importLow, importIntervals)

	// A token is of no use once it has expired.
	q := m.ask(m.new, r)
	w.advance(5*time.Minute + time.Second)
	if _, err := w.as("gateway").Open(t.Context(), q); !errors.Is(err, client.ErrTokenRefused) {
		t.Errorf("expired token: %v", err)
	}

	// A consent is of no use once it has ended, whatever the gateway decided.
	q = m.ask(m.new, r)
	w.advance(366 * 24 * time.Hour)
	q.AccessToken = w.token(m.new)
	got := w.opened(q)
	if s := seriesOf(got, importIntervals); s != nil || !slices.ContainsFunc(got.Withheld, func(x authz.Withheld) bool {
		return x.Field == importIntervals && x.Reason == meter.ConsentExpired
	}) {
		t.Errorf("after the consent's end: %+v", got.Withheld)
	}
}

// TestOutdatedEvidence: a genuine fact of yesterday is refused once today's has
// been seen, but for the moment that a request may have taken.
func TestOutdatedEvidence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	r := energy(days("2024-04-01", "2024-04-03"), importIntervals)
	before := m.ask(m.new, r)
	if got := w.opened(before); got.Err != nil || len(got.Series) != 1 {
		t.Fatalf("%+v", got)
	}
	m.step(authz.RevokeConsent{ID: m.consent})
	if got := w.opened(m.ask(m.new, r)); got.Err != nil || len(got.Series) != 0 {
		t.Fatalf("after the revocation: %+v", got)
	}
	if got := w.opened(before); got.Err != nil || len(got.Series) != 1 {
		t.Errorf("a request on its way at the revocation: %+v", got)
	}
	w.advance(61 * time.Second)
	w.open.opened()
	if got := w.opened(before); !errors.Is(got.Err, client.ErrEvidence) {
		t.Errorf("the file from before the revocation: %+v", got)
	}
	if n := w.open.opened(); n != 0 {
		t.Errorf("the token opened %d blocks", n)
	}

	// The same of the supplier's certificate.
	facts := m.new.facts
	facts.Certificates = append(slices.Clone(facts.Certificates), authz.Certificate{Thumbprint: [32]byte{7}, NotAfter: baseTime.AddDate(2, 0, 0)})
	facts.Certificates[0].RevokedAt = w.clock.now()
	next, err := w.as("registrar").SealSupplier(t.Context(), m.new.record, facts)
	w.must(err)
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))
	if got := w.opened(q); got.Err != nil || len(got.Series) != 1 {
		t.Fatalf("%+v", got)
	}
	q.SupplierRecord = next
	if _, err := w.as("gateway").Open(t.Context(), q); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("with the record that revokes the certificate: %v", err)
	}
	w.advance(61 * time.Second)
	q.SupplierRecord = m.new.record
	if _, err := w.as("gateway").Open(t.Context(), q); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("with the record from before: %v", err)
	}
	if _, _, err := w.as("issuer").SignToken(t.Context(), m.new.record, m.new.leaf, []string{authn.ScopeReadings}, time.Minute); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("a token with the record from before: %v", err)
	}
}

// TestFailedItemIsNotUsed: what a token calls bad is not read, whatever it left
// in the buffer.
func TestFailedItemIsNotUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))
	w.open.spoil.Store(true)
	got := w.opened(q)
	if want := []client.Fault{{Block: 0, Reason: client.Damaged}}; !slices.Equal(got.Faults, want) {
		t.Errorf("faults %v", got.Faults)
	}
	if v := valuesOf(got, importLow)[q.Units[0].Blocks[0].Day]; len(v) != 1 || v[0] != meter.Null {
		t.Errorf("values %v", v)
	}
}

// TestPanicIsContained: one call that panics fails, and tells nothing.
func TestPanicIsContained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))
	w.open.panics.Store(true)
	if _, err := w.as("gateway").Open(t.Context(), q); !errors.Is(err, client.ErrInternal) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	w.open.panics.Store(false)
	if got := w.opened(q); got.Err != nil || len(got.Series) != 1 {
		t.Errorf("the next call: %+v", got)
	}
	if log := w.log.String(); strings.Contains(log, "secret value") || !strings.Contains(log, "panic in a call") {
		t.Error("the panic is not in the log, or its value is")
	}
}

// softSigner signs as a forger would: with a key of its own.
type softSigner struct {
	key *ecdsa.PrivateKey
	id  authz.KeyID
}

func (s softSigner) KeyID() authz.KeyID { return s.id }

func (s softSigner) SignDigest(d [32]byte) (sig [64]byte, err error) {
	r, ss, err := ecdsa.Sign(rand.Reader, s.key, d[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	ss.FillBytes(sig[32:])
	return sig, nil
}

func jwt(header, claims string, sign func(string) []byte) string {
	enc := base64.RawURLEncoding.EncodeToString
	input := enc([]byte(header)) + "." + enc([]byte(claims))
	var sig []byte
	if sign != nil {
		sig = sign(input)
	}
	return input + "." + enc(sig)
}

func hs256(w *world, claims string) string {
	pub := w.hsm.SignKeys[0]
	der, err := x509.MarshalPKIXPublicKey(pub)
	w.must(err)
	kid, err := authn.KeyID(pub)
	w.must(err)
	return jwt(fmt.Sprintf(`{"typ":"at+jwt","alg":"HS256","kid":%q}`, kid), claims, func(input string) []byte {
		m := hmac.New(sha256.New, der)
		m.Write([]byte(input))
		return m.Sum(nil)
	})
}

// TestPlaintextIsCleared: after the answer nothing of what was opened stays in
// the memory that the next call reuses.
func TestPlaintextIsCleared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	w.open.opened()
	w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-05-01"), importLow, importIntervals)))
	w.open.mu.Lock()
	defer w.open.mu.Unlock()
	if len(w.open.outs) != 31+30 {
		t.Fatalf("%d blocks", len(w.open.outs))
	}
	for _, out := range w.open.outs {
		if len(out) == 0 || !bytes.Equal(out, make([]byte, len(out))) {
			t.Fatal("plaintext is still there")
		}
	}
}

// TestNothingPersonalInLogs: identities, counts and codes only.
func TestNothingPersonalInLogs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-05-01"), importLow))
	w.opened(q)
	token := q.AccessToken
	q.SupplierRecord = nil
	_, err := w.as("gateway").Open(context.WithoutCancel(t.Context()), q)
	if err == nil {
		t.Fatal("no error")
	}
	_, err = w.as("registrar").SealStep(t.Context(), m.file, authz.Register{EAN: m.ean, Commodity: meter.Gas})
	if err == nil {
		t.Fatal("no error")
	}
	log := w.log.String()
	for what, s := range map[string]string{
		"EAN": m.ean.String(), "EAN as a number": fmt.Sprint(m.ean.Int64()), "GLN": m.new.gln.String(), "GLN as a number": fmt.Sprint(m.new.gln.Int64()),
		"token": token, "half a token": token[:len(token)/2], "name": "New Energy",
		"value": fmt.Sprint(int64(register(importLow, day("2024-04-01")))),
	} {
		if strings.Contains(log, s) {
			t.Errorf("the log holds the %s", what)
		}
	}
	if n := strings.Count(log, `"method":"Open"`); n != 2 {
		t.Errorf("%d lines for two calls", n)
	}
}
