package cryptoserver_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

const customerService = "customer on the line" // the reason of w.staffToken

func (s *spySealer) IndexMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	s.mu.Lock()
	s.plain = append(s.plain, messages...)
	s.mu.Unlock()
	return s.Sealer.IndexMAC(ctx, messages)
}

func address(t testing.TB, postcode, number string) (meter.Postcode, meter.HouseNumber) {
	t.Helper()
	c, err1 := meter.ParsePostcode(postcode)
	h, err2 := meter.ParseHouseNumber(number)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return c, h
}

func livingAt(t testing.TB, name, postcode, number, addition string) meter.Person {
	t.Helper()
	c, h := address(t, postcode, number)
	return meter.Person{Name: name, Address: meter.Address{Street: "Dorpsstraat", HouseNumber: h, Addition: addition, Postcode: c, City: "Ons Dorp"}}
}

// identity seals who lives at a metering point since a day, under a new key.
func (p *point) identity(since string, version uint32, who meter.Person) (envelope.SealedIdentity, envelope.IdentityContent) {
	p.w.t.Helper()
	d := day(since)
	keys, err := p.w.as("ingest").Mint(p.w.t.Context(), []envelope.KeySpec{{EAN: p.ean, Class: meter.Identity, Month: d.Month(), Occupancy: d}})
	p.w.must(err)
	out, err := p.w.as("ingest").SealIdentities(p.w.t.Context(), []envelope.PlainIdentity{{Key: keys[0], Version: version, Person: who}})
	p.w.must(err)
	return envelope.SealedIdentity{Day: d, Version: version, Key: keys[0], Ciphertext: out[0].Ciphertext}, out[0]
}

func (w *world) findToken(portal *party, postcode, number string) string {
	w.t.Helper()
	e := authz.Errand{Kind: authz.ErrandFind}
	e.Postcode, e.HouseNumber = address(w.t, postcode, number)
	return w.staffToken(portal, "kim", authz.Agent, e)
}

func (w *world) viewToken(portal *party, role authz.Role, p *point) string {
	w.t.Helper()
	return w.staffToken(portal, "kim", role, authz.Errand{Kind: authz.ErrandView, EAN: p.ean})
}

// who asks for the identity of one metering point.
func (w *world) who(token string, record []byte, p *point, row envelope.SealedIdentity) (client.OpenedIdentity, error) {
	w.t.Helper()
	out, err := w.as("gateway").OpenIdentities(w.t.Context(), client.IdentityRequest{
		AccessToken: token, SupplierRecord: record, Profile: w.profile.Digest(),
		Units: []client.IdentityUnit{{InteractionID: [16]byte{7}, EAN: p.ean, LegalFile: p.file, Identity: row}},
	})
	if err != nil {
		return client.OpenedIdentity{}, err
	}
	return out[0], nil
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := &market{old: w.supplier("871234500000", "Old Energy"), new: w.supplier("871234500001", "New Energy"), consent: [16]byte{1}}
	m.point = w.electricity(m.old, m.new, m.consent)
	portal := w.portal()
	person := livingAt(t, "Xantippe Overdam", "1234AB", "17", "A")
	row, content := m.identity("2023-01-01", 1, person)
	n := w.electricity(m.old, m.new, [16]byte{2})
	neighbour, nextDoor := n.identity("2023-01-01", 1, livingAt(t, "Ysolde Buurman", "1234AB", "17", "B"))
	view := w.viewToken(portal, authz.Agent, m.point)
	find := w.findToken(portal, "1234AB", "17")
	nameless := meter.Person{Address: person.Address}

	// What may be told, with its receipt.
	seen := len(w.audit())
	readings := authz.Errand{Kind: authz.ErrandReadings, EAN: m.ean, Days: days("2024-04-02", "2024-04-05"), Fields: []meter.FieldCode{importLow}}
	step := authz.Errand{Kind: authz.ErrandStep, EAN: m.ean, Action: authz.ActionRevoke, ConsentID: m.consent, Scope: [32]byte{1}}
	for name, tt := range map[string]struct {
		token string
		want  meter.Person
	}{
		"to look":             {view, person},
		"a supervisor":        {w.viewToken(portal, authz.Supervisor, m.point), person},
		"for readings":        {w.staffToken(portal, "kim", authz.Agent, readings), person},
		"for a step":          {w.staffToken(portal, "kim", authz.Agent, step), person},
		"to find the address": {find, nameless},
	} {
		got, err := w.who(tt.token, portal.record, m.point, row)
		if err != nil || got.Err != nil || got.Person != tt.want {
			t.Errorf("%s: %+v, %v", name, got, err)
			continue
		}
		r, err := envelope.ParseReceipt(got.Receipt)
		if err != nil || r.EAN != m.ean || r.Supplier != portal.gln || r.Purpose != meter.CustomerService || r.InteractionID != [16]byte{7} || r.FileVersion == 0 ||
			r.Profile != w.profile.Digest() || r.Opened != 1 || r.Refused+r.Damaged != 0 || !r.OfEmployee(stafftest.Subject("kim"), customerService) ||
			r.Content != envelope.ContentDigest([]envelope.Opened{{ID: envelope.BlockID{EAN: m.ean, Field: 9, Day: day("2023-01-01"), Version: 1, KeyID: row.Key.ID}, Basis: meter.CustomerServiceBasis}}) {
			t.Errorf("%s: receipt %+v, %v", name, r, err)
		}
	}
	if told := len(w.audit()) - seen; told != 5 {
		t.Errorf("%d entries in the journal, want 5", told)
	}
	// Two at one house number, in one call.
	both, err := w.as("gateway").OpenIdentities(t.Context(), client.IdentityRequest{
		AccessToken: find, SupplierRecord: portal.record, Profile: w.profile.Digest(), Units: []client.IdentityUnit{
			{InteractionID: [16]byte{8}, EAN: m.ean, LegalFile: m.file, Identity: row},
			{InteractionID: [16]byte{8}, EAN: n.ean, LegalFile: n.file, Identity: neighbour},
		},
	})
	if err != nil || both[0].Person.Address.Addition != "A" || both[1].Person.Address.Addition != "B" || both[0].Person.Name+both[1].Person.Name != "" {
		t.Errorf("two: %+v, %v", both, err)
	}

	// The blind index is that of the address in the token, whichever metering
	// point and whatever the addition, and of no use to whoever lacks the key.
	index, err := w.as("gateway").FindIndex(t.Context(), find, portal.record, w.profile.Digest())
	if err != nil || index != content.BlindIndex || index != nextDoor.BlindIndex {
		t.Errorf("index %x of %x, %v", index, content.BlindIndex, err)
	}
	elsewhere, err := w.as("gateway").FindIndex(t.Context(), w.findToken(portal, "1234AB", "71"), portal.record, w.profile.Digest())
	if err != nil || elsewhere == index {
		t.Errorf("another address: %x, %v", elsewhere, err)
	}
	if content.ContentMAC == nextDoor.ContentMAC || content.ContentMAC == index {
		t.Error("MACs that should differ do not")
	}
	message := envelope.AddressMessage(person.Address.Postcode, person.Address.HouseNumber)
	if sha256.Sum256(message) == index || bytes.Equal(hmac.New(sha256.New, nil).Sum(message), index[:]) {
		t.Error("the index can be computed by anybody")
	}

	// What nobody is told. The token of the HSM is not even asked.
	supplier := w.token(m.new)
	next, _ := m.identity("2024-02-01", 1, livingAt(t, "Zacharias Vroeger", "1234AB", "17", "A"))
	change := func(f func(r *envelope.SealedIdentity)) envelope.SealedIdentity {
		r := row
		r.Ciphertext = bytes.Clone(row.Ciphertext)
		f(&r)
		return r
	}
	for name, tt := range map[string]struct {
		token  string
		record []byte
		on     *point
		row    envelope.SealedIdentity
		want   error
	}{
		"a supplier":                        {supplier, m.new.record, m.point, row, client.ErrSupplierRefused},
		"a supplier on the operator's":      {supplier, portal.record, m.point, row, client.ErrSupplierRefused},
		"on a supplier's record":            {view, m.new.record, m.point, row, client.ErrSupplierRefused},
		"an auditor":                        {w.viewToken(portal, authz.Auditor, m.point), portal.record, m.point, row, authz.ErrNotPermitted},
		"to oversee":                        {w.staffToken(portal, "kim", authz.Supervisor, authz.Errand{Kind: authz.ErrandOversee}), portal.record, m.point, row, authz.ErrNotPermitted},
		"of a neighbour":                    {view, portal.record, n, neighbour, authz.ErrNotPermitted},
		"a neighbour's row":                 {view, portal.record, m.point, neighbour, client.ErrDamaged},
		"a former customer's":               {view, portal.record, m.point, next, client.ErrNoIdentity}, // of 2024, by a file that says 2023
		"dated as today's":                  {view, portal.record, m.point, func() envelope.SealedIdentity { r := next; r.Day = row.Day; return r }(), client.ErrDamaged},
		"without its key":                   {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Key = envelope.KeyRecord{} }), client.ErrDamaged},
		"no ciphertext":                     {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Ciphertext = nil }), client.ErrDamaged},
		"a shorter ciphertext":              {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Ciphertext = r.Ciphertext[:len(r.Ciphertext)-1] }), client.ErrDamaged},
		"no version":                        {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Version = 0 }), client.ErrDamaged},
		"a key of another class":            {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Key.Class = meter.Registers }), client.ErrDamaged},
		"a key of another occupancy":        {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Key.Occupancy++ }), client.ErrDamaged},
		"to find, at another house number":  {w.findToken(portal, "1234AB", "18"), portal.record, m.point, row, client.ErrNoIdentity},
		"to find, at another postcode":      {w.findToken(portal, "1234AC", "17"), portal.record, m.point, row, client.ErrNoIdentity},
		"a legal file that does not verify": {view, portal.record, &point{w: w, ean: m.ean, file: []byte("forged")}, row, client.ErrEvidence},
		"a supplier's record for the file":  {view, portal.record, &point{w: w, ean: m.ean, file: m.new.record}, row, client.ErrEvidence},
		// These are opened, and nothing comes of it.
		"another version": {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Version = 2 }), client.ErrDamaged},
		"a bit flipped":   {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Ciphertext[60] ^= 1 }), client.ErrDamaged},
		"another's key under its id": {view, portal.record, m.point, change(func(r *envelope.SealedIdentity) { r.Key.Wrapped = neighbour.Key.Wrapped }),
			client.ErrDamaged},
	} {
		before := len(w.audit())
		w.open.opened()
		got, err := w.who(tt.token, tt.record, tt.on, tt.row)
		if err == nil {
			err = got.Err
		}
		if !errors.Is(err, tt.want) || got.Person != (meter.Person{}) || got.Receipt != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		opens := name == "another version" || name == "a bit flipped" || name == "another's key under its id" || strings.HasPrefix(name, "to find")
		if opened := w.open.opened(); (opened > 0) != opens || len(w.audit()) != before {
			t.Errorf("%s: %d opened, %d entries more", name, opened, len(w.audit())-before)
		}
	}
	// Nor is an identity a reading, whatever rows a gateway sends as blocks.
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))
	q.Units[0].Keys = []envelope.KeyRecord{row.Key}
	q.Units[0].Blocks = []envelope.SealedBlock{{Field: importLow, Day: day("2024-04-01"), Resolution: meter.P1D, Version: 1, Ciphertext: row.Ciphertext}}
	if got := w.opened(q); len(got.Faults) != 1 || got.Faults[0].Reason != client.Damaged {
		t.Errorf("as a block: %+v", got)
	}

	// Whoever may not find is told no index.
	for name, tt := range map[string]struct {
		token  string
		record []byte
		want   error
	}{
		"a supplier": {supplier, m.new.record, client.ErrSupplierRefused}, "to look": {view, portal.record, authz.ErrNotPermitted},
		"on a supplier's record": {find, m.new.record, client.ErrSupplierRefused}, "no token": {"x", portal.record, client.ErrTokenRefused},
	} {
		if got, err := w.as("gateway").FindIndex(t.Context(), tt.token, tt.record, w.profile.Digest()); !errors.Is(err, tt.want) || got != [32]byte{} {
			t.Errorf("index: %s: %x, %v", name, got, err)
		}
	}
	if _, err := w.as("gateway").FindIndex(t.Context(), find, portal.record, [32]byte{1}); !errors.Is(err, client.ErrProfileMismatch) {
		t.Errorf("by another profile: %v", err)
	}

	// The customer leaves: from that day on nothing is told of who lived there.
	m.step(authz.SetOccupancy{Days: days("2023-01-01", "2024-06-15")})
	if got, err := w.who(view, portal.record, m.point, row); err != nil || !errors.Is(got.Err, client.ErrNoIdentity) {
		t.Errorf("nobody lives there: %+v, %v", got, err)
	}
	m.step(authz.SetOccupancy{Days: meter.DayRange{From: day("2024-06-15"), To: meter.MaxDay}})
	if got, err := w.who(view, portal.record, m.point, row); err != nil || !errors.Is(got.Err, client.ErrNoIdentity) {
		t.Errorf("another lives there: %+v, %v", got, err)
	}
	moved, _ := m.identity("2024-06-15", 1, livingAt(t, "Nieuwe Bewoner", "1234AB", "17", "A"))
	if got, err := w.who(view, portal.record, m.point, moved); err != nil || got.Err != nil || got.Person.Name != "Nieuwe Bewoner" {
		t.Errorf("who lives there now: %+v, %v", got, err)
	}

	// Old readings go, and who lives there stays known; until its key is erased.
	w.append(control.Entry{Kind: control.EraseBefore, Cause: control.CauseRetention, Month: day("2024-06-01").Month()})
	if got, err := w.who(w.viewToken(portal, authz.Agent, n), portal.record, n, neighbour); err != nil || got.Err != nil {
		t.Errorf("after the months were erased: %+v, %v", got, err)
	}
	if _, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: n.ean, Class: meter.Registers, Month: day("2023-01-01").Month(), Occupancy: day("2023-01-01")}}); !errors.Is(err, client.ErrErased) {
		t.Errorf("a key of erased months: %v", err)
	}
	n.identity("2023-01-01", 2, livingAt(t, "Ysolde Buurman", "1234AB", "17", "B"))
	w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, EAN: n.ean, Keys: []control.KeyID{neighbour.Key.ID}})
	if got, err := w.who(w.viewToken(portal, authz.Agent, n), portal.record, n, neighbour); err != nil || !errors.Is(got.Err, client.ErrErased) {
		t.Errorf("after its key was erased: %+v, %v", got, err)
	}
	if _, err := w.as("ingest").SealIdentities(t.Context(), []envelope.PlainIdentity{{Key: neighbour.Key, Version: 3, Person: person}}); !errors.Is(err, client.ErrErased) {
		t.Errorf("sealed under an erased key: %v", err)
	}

	// Nothing of them is left in buffers, logs or metrics.
	w.open.mu.Lock()
	for _, b := range w.open.outs {
		if bytes.Contains(b, []byte("Overdam")) || bytes.Contains(b, []byte("1234AB")) {
			t.Error("a plaintext was left in a buffer of opening")
		}
	}
	w.open.mu.Unlock()
	w.seal.mu.Lock()
	for _, b := range w.seal.plain {
		if bytes.Contains(b, []byte("Overdam")) || bytes.Contains(b, []byte("1234AB")) {
			t.Error("a plaintext was left in a buffer of sealing")
		}
	}
	w.seal.mu.Unlock()
	for _, s := range []string{"Overdam", "Xantippe", "1234AB", "Dorpsstraat", "Ons Dorp", m.ean.String(), hex.EncodeToString(index[:])} {
		if strings.Contains(w.log.String(), s) {
			t.Errorf("%q is in the log", s)
		}
	}

	// Nor for longer than the token lives.
	w.advance(5 * time.Minute)
	if _, err := w.who(view, portal.record, m.point, moved); !errors.Is(err, client.ErrTokenRefused) {
		t.Errorf("an expired token: %v", err)
	}
}

// What is sealed is checked: key, metering point, texts.
func TestSealIdentityRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.point(meter.Electricity)
	d := day("2023-05-10")
	mint := func(specs ...envelope.KeySpec) []envelope.KeyRecord {
		keys, err := w.as("ingest").Mint(t.Context(), specs)
		w.must(err)
		return keys
	}
	keys := mint(
		envelope.KeySpec{EAN: p.ean, Class: meter.Identity, Month: d.Month(), Occupancy: d},
		envelope.KeySpec{EAN: p.ean, Class: meter.Registers, Month: d.Month(), Occupancy: d},
		envelope.KeySpec{EAN: p.ean, Class: meter.Identity, Month: d.Month() + 1, Occupancy: d},
		envelope.KeySpec{EAN: p.ean, Class: meter.Identity, Month: d.Month()},
	)
	good := livingAt(t, "Xantippe Overdam", "1234AB", "17", "")
	raw := w.raw(w.clientTLS("ingest"))
	wire := func(k envelope.KeyRecord) *cryptopb.DataKey {
		return &cryptopb.DataKey{Id: k.ID[:], Ean: uint64(k.EAN.Int64()), Class: uint32(k.Class), Month: int32(k.Month), Occupancy: int32(k.Occupancy),
			KekEpoch: k.Epoch, Wrapped: k.Wrapped, Mac: k.MAC[:]}
	}
	request := func() *cryptopb.SealIdentityRequest {
		return &cryptopb.SealIdentityRequest{Identities: []*cryptopb.PlainIdentity{{Key: wire(keys[0]), Version: 1,
			Person: &cryptopb.Person{Name: good.Name, Street: "Dorpsstraat", HouseNumber: 17, Postcode: "1234AB", City: "Ons Dorp"}}}}
	}
	if _, err := raw.SealIdentity(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	before := w.seal.sealed.Load()
	other := w.point(meter.Electricity)
	for name, tt := range map[string]struct {
		change func(*cryptopb.SealIdentityRequest)
		want   cryptopb.Reason
	}{
		"nothing":                {func(r *cryptopb.SealIdentityRequest) { r.Identities = nil }, cryptopb.ReasonMalformed},
		"no key":                 {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Key = nil }, cryptopb.ReasonMalformed},
		"no person":              {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Person = nil }, cryptopb.ReasonMalformed},
		"nil":                    {func(r *cryptopb.SealIdentityRequest) { r.Identities[0] = nil }, cryptopb.ReasonMalformed},
		"no version":             {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Version = 0 }, cryptopb.ReasonMalformed},
		"a key of registers":     {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Key = wire(keys[1]) }, cryptopb.ReasonMalformed},
		"a key of another month": {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Key = wire(keys[2]) }, cryptopb.ReasonMalformed},
		"a key of no customer":   {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Key = wire(keys[3]) }, cryptopb.ReasonMalformed},
		"another metering point": {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Key.Ean = uint64(other.ean.Int64()) }, cryptopb.ReasonKeyRecordInvalid},
		"another customer": {func(r *cryptopb.SealIdentityRequest) {
			r.Identities[0].Key.Occupancy++
		}, cryptopb.ReasonKeyRecordInvalid},
		"a wrapped key of another": {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Key.Wrapped = keys[1].Wrapped }, cryptopb.ReasonKeyRecordInvalid},
		"no name":                  {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Person.Name = "" }, cryptopb.ReasonMalformed},
		"a line break":             {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Person.Street = "Overdam\n" }, cryptopb.ReasonMalformed},
		"a postcode of elsewhere":  {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Person.Postcode = "1000" }, cryptopb.ReasonMalformed},
		"no house number":          {func(r *cryptopb.SealIdentityRequest) { r.Identities[0].Person.HouseNumber = 0 }, cryptopb.ReasonMalformed},
		"twice":                    {func(r *cryptopb.SealIdentityRequest) { r.Identities = append(r.Identities, request().Identities[0]) }, cryptopb.ReasonMalformed},
		"twice, another version": {func(r *cryptopb.SealIdentityRequest) {
			r.Identities = append(r.Identities, request().Identities[0])
			r.Identities[1].Version = 2
		}, cryptopb.ReasonMalformed},
	} {
		r := request()
		tt.change(r)
		_, err := raw.SealIdentity(t.Context(), r)
		if reasonOf(err) != tt.want || strings.Contains(err.Error(), "Overdam") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.seal.sealed.Load() != before {
		t.Error("something was sealed")
	}
	// Guessing a name by its content MAC is bounded.
	var err error
	for range 40 {
		if _, err = raw.SealIdentity(t.Context(), request()); err != nil {
			break
		}
	}
	if reasonOf(err) != cryptopb.ReasonSealedTooOften {
		t.Errorf("guesses without end: %v", err)
	}
}

// A data key of an identity is rewrapped and replaced as any other.
func TestIdentityKeysLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.point(meter.Electricity)
	p.step(authz.SetOccupancy{Days: meter.DayRange{From: day("2023-01-01"), To: meter.MaxDay}})
	person := livingAt(t, "Xantippe Overdam", "1234AB", "17", "")
	row, _ := p.identity("2023-01-01", 1, person)
	portal := w.portal()

	_, out, err := w.as("custodian").Rewrap(t.Context(), []envelope.KeyRecord{row.Key})
	if err != nil || out[0].Err != nil {
		t.Fatal(out, err)
	}
	to, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: p.ean, Class: meter.Identity, Month: row.Day.Month(), Occupancy: row.Day}})
	w.must(err)
	block := envelope.SealedBlock{Field: 9, Day: row.Day, Version: 1, Ciphertext: row.Ciphertext}
	resealed, err := w.as("custodian").Reseal(t.Context(), row.Key, to[0], []envelope.SealedBlock{block})
	if err != nil || resealed[0].Err != nil {
		t.Fatal(resealed, err)
	}
	moved := envelope.SealedIdentity{Day: row.Day, Version: 1, Key: to[0], Ciphertext: resealed[0].Ciphertext}
	if got, err := w.who(w.viewToken(portal, authz.Agent, p), portal.record, p, moved); err != nil || got.Err != nil || got.Person != person {
		t.Errorf("under another key: %+v, %v", got, err)
	}
	for name, change := range map[string]func(b *envelope.SealedBlock){
		"as a register": func(b *envelope.SealedBlock) { b.Field, b.Resolution = importLow, meter.P1D },
		"by day":        func(b *envelope.SealedBlock) { b.Resolution = meter.P1D },
		"another day":   func(b *envelope.SealedBlock) { b.Day++ },
		"version 2":     func(b *envelope.SealedBlock) { b.Version = 2 },
	} {
		b := block
		change(&b)
		if got, err := w.as("custodian").Reseal(t.Context(), row.Key, to[0], []envelope.SealedBlock{b}); err != nil || got[0].Err == nil {
			t.Errorf("%s: resealed, %v", name, err)
		}
	}
}
