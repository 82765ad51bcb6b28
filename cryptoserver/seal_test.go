package cryptoserver_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/internal/authn"
	"kluis/internal/devpki"
	"kluis/meter"
)

func TestMint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.point(meter.Electricity)
	var specs []envelope.KeySpec
	for i := range 300 {
		specs = append(specs, envelope.KeySpec{EAN: p.ean, Class: meter.Class(1 + i%2), Month: meter.Month(600 + i/2), Occupancy: day("2023-01-01")})
	}
	recs, err := w.as("ingest").Mint(t.Context(), specs)
	w.must(err)
	ids, wrapped := map[[16]byte]bool{}, map[string]bool{}
	for i, r := range recs {
		if r.EAN != p.ean || r.Class != specs[i].Class || r.Month != specs[i].Month || r.Occupancy != specs[i].Occupancy ||
			r.Epoch != 1 || len(r.Wrapped) != envelope.WrappedKeySize || r.MAC == [32]byte{} || r.ID == [16]byte{} {
			t.Fatalf("record %d: %+v", i, r)
		}
		ids[r.ID], wrapped[string(r.Wrapped)] = true, true
	}
	if len(ids) != len(specs) || len(wrapped) != len(specs) {
		t.Errorf("%d ids and %d keys for %d records", len(ids), len(wrapped), len(specs))
	}
	api := w.raw(w.clientTLS("ingest"))
	good := func() *cryptopb.MintKey { return &cryptopb.MintKey{Ean: uint64(p.ean.Int64()), Class: 1, Month: 600} }
	for name, change := range map[string]func(*cryptopb.MintKey){
		"bad check digit": func(k *cryptopb.MintKey) { k.Ean++ },
		"EAN overflows":   func(k *cryptopb.MintKey) { k.Ean = math.MaxUint64 },
		"no class":        func(k *cryptopb.MintKey) { k.Class = 0 },
		"unknown class":   func(k *cryptopb.MintKey) { k.Class = 4 },
		"class wraps":     func(k *cryptopb.MintKey) { k.Class = 257 },
		"month":           func(k *cryptopb.MintKey) { k.Month = -1 },
		"far month":       func(k *cryptopb.MintKey) { k.Month = 1 << 30 },
		"occupancy":       func(k *cryptopb.MintKey) { k.Occupancy = -1 },
	} {
		k := good()
		change(k)
		if _, err := api.Mint(t.Context(), &cryptopb.MintRequest{Keys: []*cryptopb.MintKey{good(), k}}); reasonOf(err) != cryptopb.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSeal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.point(meter.Electricity)
	d := day("2024-03-31") // 92 quarters
	blocks := []envelope.PlainBlock{w.registerBlock(importLow, d), w.intervalBlock(importIntervals, d, meter.PT15M)}
	blocks[1].Block.Quality = make([]meter.Quality, 92)
	blocks[1].Block.Quality[3] = meter.Estimated
	first := p.store(slices.Clone(blocks)...)
	again := slices.Clone(blocks)
	for i := range again {
		again[i].Version = 2
	}
	second := p.store(again...)
	ivs := map[string]bool{}
	for i := range blocks {
		if first[i].ContentMAC != second[i].ContentMAC {
			t.Errorf("block %d: equal content, another content MAC", i)
		}
		for _, s := range []envelope.SealedContent{first[i], second[i]} {
			ct, err := envelope.ParseCiphertext(s.Ciphertext)
			w.must(err)
			if ct.KeyID != p.keys[p.rows[i].Key].ID {
				t.Errorf("block %d names another key", i)
			}
			ivs[string(ct.IV)] = true
		}
	}
	if len(ivs) != 4 || ivs[string(make([]byte, 12))] {
		t.Errorf("%d IVs for 4 blocks", len(ivs))
	}
	macs := map[[32]byte]bool{first[0].ContentMAC: true, first[1].ContentMAC: true}
	other := w.registerBlock(importLow, d)
	other.Block.Values[0]++
	macs[p.store(other)[0].ContentMAC] = true
	elsewhere := w.point(meter.Electricity)
	macs[elsewhere.store(w.registerBlock(importLow, d))[0].ContentMAC] = true
	macs[p.store(w.registerBlock(importLow, d+1))[0].ContentMAC] = true
	same := w.registerBlock(importNormal, d)
	same.Block.Values[0] = register(importLow, d)
	macs[p.store(same)[0].ContentMAC] = true
	if len(macs) != 6 {
		t.Errorf("%d content MACs for 6 contents", len(macs))
	}
}

// TestSealClears: no plaintext stays behind in the buffers of a call.
func TestSealClears(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := day("2024-04-10")
	w.point(meter.Electricity).store(w.registerBlock(importLow, d), w.intervalBlock(importIntervals, d, meter.PT15M))
	w.seal.mu.Lock()
	defer w.seal.mu.Unlock()
	if len(w.seal.plain) != 4 {
		t.Fatalf("%d buffers for two blocks and their content messages", len(w.seal.plain))
	}
	for _, p := range w.seal.plain {
		if len(p) == 0 || !bytes.Equal(p, make([]byte, len(p))) {
			t.Error("plaintext is still there")
		}
	}
}

// TestSealRefusesKeys: nothing is sealed under a key record that is not what
// was minted for this metering point, class and month.
func TestSealRefusesKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, neighbour := w.point(meter.Electricity), w.point(meter.Electricity)
	d := day("2024-04-10")
	mint := func(p *point, c meter.Class, m meter.Month) envelope.KeyRecord {
		recs, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: p.ean, Class: c, Month: m}})
		w.must(err)
		return recs[0]
	}
	own := mint(p, meter.Registers, d.Month())
	theirs := mint(neighbour, meter.Registers, d.Month())
	before := w.seal.sealed.Load()
	for name, key := range map[string]envelope.KeyRecord{
		"the neighbour's":             theirs,
		"the neighbour's, relabelled": with(theirs, func(k *envelope.KeyRecord) { k.EAN = p.ean }),
		"wrapped key swapped":         with(own, func(k *envelope.KeyRecord) { k.Wrapped = theirs.Wrapped }),
		"wrapped key and id swapped":  with(own, func(k *envelope.KeyRecord) { k.Wrapped, k.ID = theirs.Wrapped, theirs.ID }),
		"wrapped key and MAC swapped": with(own, func(k *envelope.KeyRecord) { k.Wrapped, k.MAC = theirs.Wrapped, theirs.MAC }),
		"another id":                  with(own, func(k *envelope.KeyRecord) { k.ID[0] ^= 1 }),
		"another occupancy":           with(own, func(k *envelope.KeyRecord) { k.Occupancy++ }),
		"another epoch":               with(own, func(k *envelope.KeyRecord) { k.Epoch++ }),
		"altered MAC":                 with(own, func(k *envelope.KeyRecord) { k.MAC[31] ^= 1 }),
		"of another month":            mint(p, meter.Registers, d.Month()+1),
		"of another month, relabelled": with(mint(p, meter.Registers, d.Month()+1), func(k *envelope.KeyRecord) {
			k.Month = d.Month()
		}),
		"of another class": mint(p, meter.Intervals, d.Month()),
		"of another class, relabelled": with(mint(p, meter.Intervals, d.Month()), func(k *envelope.KeyRecord) {
			k.Class = meter.Registers
		}),
	} {
		_, err := w.as("ingest").Seal(t.Context(), p.ean, []envelope.KeyRecord{key}, []envelope.PlainBlock{w.registerBlock(importLow, d)})
		if !errors.Is(err, client.ErrKeyRecord) || !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := w.seal.sealed.Load() - before; n != 0 {
		t.Errorf("%d blocks were sealed all the same", n)
	}
	if _, err := w.as("ingest").Seal(t.Context(), p.ean, []envelope.KeyRecord{own}, []envelope.PlainBlock{w.registerBlock(importLow, d)}); err != nil {
		t.Errorf("the genuine record: %v", err)
	}
}

func with(k envelope.KeyRecord, change func(*envelope.KeyRecord)) envelope.KeyRecord {
	k.Wrapped = bytes.Clone(k.Wrapped)
	change(&k)
	return k
}

// TestSealRefusesBlocks: one bad block, and nothing is sealed.
func TestSealRefusesBlocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.point(meter.Electricity)
	d := day("2024-03-31")
	recs, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{
		{EAN: p.ean, Class: meter.Registers, Month: d.Month()}, {EAN: p.ean, Class: meter.Intervals, Month: d.Month()},
	})
	w.must(err)
	good := w.registerBlock(importLow, d)
	intervals := func(n int) envelope.PlainBlock {
		b := w.intervalBlock(importIntervals, d, meter.PT15M)
		b.Key = 1
		b.Block.Values = append(b.Block.Values, b.Block.Values...)[:n]
		return b
	}
	before := w.seal.sealed.Load()
	for name, bad := range map[string]envelope.PlainBlock{
		"96 quarters on a day of 92": intervals(96),
		"91 quarters":                intervals(91),
		"no values":                  intervals(0),
		"unknown field":              func() envelope.PlainBlock { b := w.registerBlock(99, d); return b }(),
		"no version":                 func() envelope.PlainBlock { b := w.registerBlock(importLow, d); b.Version = 0; return b }(),
		"no such key":                func() envelope.PlainBlock { b := w.registerBlock(importLow, d); b.Key = 2; return b }(),
		"negative key":               func() envelope.PlainBlock { b := w.registerBlock(importLow, d); b.Key = -1; return b }(),
		"gas by the quarter-hour": func() envelope.PlainBlock {
			b := intervals(92)
			b.Field = 8
			return b
		}(),
		"daily intervals": func() envelope.PlainBlock { b := intervals(92); b.Block.Resolution = meter.P1D; return b }(),
		"quality too short": func() envelope.PlainBlock {
			b := intervals(92)
			b.Block.Quality = []meter.Quality{meter.Estimated}
			return b
		}(),
		"unknown quality": func() envelope.PlainBlock {
			b := intervals(92)
			b.Block.Quality = make([]meter.Quality, 92)
			b.Block.Quality[0] = 77
			return b
		}(),
		"more values than a day has": func() envelope.PlainBlock { b := intervals(92); b.Block.Values = make([]meter.Value, 1<<20); return b }(),
		"the same block twice":       good,
		"beyond the limit":           func() envelope.PlainBlock { b := intervals(92); b.Block.Values[0] = meter.MaxInterval + 1; return b }(),
	} {
		_, err := w.as("ingest").Seal(t.Context(), p.ean, recs, []envelope.PlainBlock{good, bad})
		if !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.as("ingest").Seal(t.Context(), meter.EAN{}, recs, []envelope.PlainBlock{good}); !errors.Is(err, client.ErrRefused) {
		t.Errorf("no metering point: %v", err)
	}
	if n := w.seal.sealed.Load() - before; n != 0 {
		t.Errorf("%d blocks were sealed all the same", n)
	}
	if _, err := w.as("ingest").Seal(t.Context(), p.ean, recs, []envelope.PlainBlock{good, intervals(92)}); err != nil {
		t.Errorf("good blocks: %v", err)
	}
}

// TestSealedTooOften: content MACs let whoever may seal try guesses of a
// stored reading; only a few may be tried.
func TestSealedTooOften(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.point(meter.Electricity)
	d := day("2024-04-10")
	guess := func(d meter.Day, v meter.Value) error {
		b := w.registerBlock(importLow, d)
		b.Block.Values[0] = v
		_, err := w.as("ingest").Seal(t.Context(), p.ean, p.keys, []envelope.PlainBlock{b})
		return err
	}
	p.store(w.registerBlock(importLow, d))
	tries := 1
	for ; tries < 1000; tries++ {
		if err := guess(d, meter.Value(tries)); err != nil {
			if !errors.Is(err, client.ErrRefused) || reasonOfClient(err) != cryptopb.ReasonSealedTooOften {
				t.Fatal(err)
			}
			break
		}
	}
	if tries > 40 {
		t.Errorf("%d guesses of one reading", tries)
	}
	// No client tries the same again by itself, here or on the next server.
	if n := w.counter("kluis_cryptoserver_calls_total", "code", "ResourceExhausted"); n != 1 {
		t.Errorf("one refused call was made %v times", n)
	}
	if err := guess(d+1, 1); err != nil {
		t.Errorf("another day: %v", err)
	}
	w.advance(24*time.Hour - time.Minute)
	if guess(d, 1) == nil {
		t.Error("admitted again within a day")
	}
	w.advance(time.Minute)
	if err := guess(d, 1); err != nil {
		t.Errorf("after a day: %v", err)
	}
}

func reasonOfClient(err error) cryptopb.Reason {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func TestSealStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.point(meter.Electricity)
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	registered := p.file
	p.step(authz.SetOccupancy{Days: meter.DayRange{From: day("2023-01-01"), To: meter.MaxDay}})
	file, err := keys.LegalFile(p.file)
	w.must(err)
	if file.Version() != 2 || file.EAN() != p.ean || !file.SealedAt().Equal(w.clock.now()) || len(file.Occupancies()) != 1 {
		t.Errorf("%+v", file)
	}
	if !bytes.Contains(file.Payload(), []byte("registrar")) {
		t.Error("who took the step is not in the file")
	}

	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	forged, err := authz.Seal(file.Payload(), softSigner{forger, authz.KeyIDOf(w.hsm.SealKeys[0])})
	w.must(err)
	altered := bytes.Clone(registered)
	altered[len(altered)/2] ^= 1
	supplier := w.supplier("871234500007", "Some Energy")
	step := authz.SetSupply{Supplier: supplier.gln, Days: meter.DayRange{From: day("2023-01-01"), To: meter.MaxDay}}
	for name, previous := range map[string][]byte{
		"forged": forged, "altered": altered, "another fact": supplier.record, "unsigned": file.Payload(),
	} {
		if _, err := w.as("registrar").SealStep(t.Context(), previous, step); !errors.Is(err, client.ErrEvidence) {
			t.Errorf("%s previous file: %v", name, err)
		}
	}
	for name, try := range map[string]func() error{
		"a step without a file": func() error { _, err := w.as("registrar").SealStep(t.Context(), nil, step); return err },
		"registered twice": func() error {
			_, err := w.as("registrar").SealStep(t.Context(), p.file, authz.Register{EAN: p.ean, Commodity: meter.Gas})
			return err
		},
	} {
		if err := try(); !errors.Is(err, client.ErrStepRefused) || !strings.Contains(err.Error(), "regist") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.raw(w.clientTLS("registrar")).SealStep(t.Context(), &cryptopb.SealStepRequest{Previous: p.file, Step: append(step.Encode(), 0)}); reasonOf(err) != cryptopb.ReasonMalformed {
		t.Errorf("a step with a byte too many: %v", err)
	}
}

func TestSealSupplier(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.supplier("871234500008", "Some Energy")
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	first, err := keys.Supplier(s.record)
	w.must(err)
	if first.Version() != 1 || first.GLN() != s.gln || first.Name() != "Some Energy" || first.Accepts(s.leaf, w.clock.now()) != nil {
		t.Errorf("%+v", first)
	}
	facts := s.facts
	facts.Certificates = slices.Clone(facts.Certificates)
	facts.Certificates[0].RevokedAt = w.clock.now()
	next, err := w.as("registrar").SealSupplier(t.Context(), s.record, facts)
	w.must(err)
	second, err := keys.Supplier(next)
	w.must(err)
	if second.Version() != 2 || !errors.Is(second.Accepts(s.leaf, w.clock.now()), authz.ErrCertificateRevoked) {
		t.Errorf("%+v", second)
	}
	// Revoked stays revoked.
	if _, err := w.as("registrar").SealSupplier(t.Context(), next, s.facts); !errors.Is(err, client.ErrStepRefused) {
		t.Errorf("a revoked certificate made valid again: %v", err)
	}
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	forged, err := authz.Seal(first.Payload(), softSigner{forger, authz.KeyIDOf(w.hsm.SealKeys[0])})
	w.must(err)
	if _, err := w.as("registrar").SealSupplier(t.Context(), forged, s.facts); !errors.Is(err, client.ErrEvidence) {
		t.Errorf("forged previous record: %v", err)
	}
}

func TestSignToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, stranger := w.supplier("871234500009", "Some Energy"), w.supplier("871234500010", "Stranger")
	scopes := []string{authn.ScopeReadings}
	sign := func(record []byte, leaf [32]byte, scopes []string, life time.Duration) error {
		_, _, err := w.as("issuer").SignToken(t.Context(), record, leaf, scopes, life)
		return err
	}
	raw, expires, err := w.as("issuer").SignToken(t.Context(), s.record, s.leaf, scopes, 2*time.Minute)
	w.must(err)
	jwks, err := authn.JWKS(w.hsm.SignKeys...)
	w.must(err)
	pinned, err := authn.PinnedKeys(jwks)
	w.must(err)
	v, err := authn.NewVerifier(w.clock.now, authn.Issuer{URL: issuerURL, Audience: audience, Keys: pinned, MaxLifetime: 5 * time.Minute})
	w.must(err)
	token, err := v.Verify(t.Context(), raw, s.leaf)
	w.must(err)
	if token.Client() != s.gln || !token.ExpiresAt().Equal(expires) || !expires.Equal(w.clock.now().Truncate(time.Second).Add(2*time.Minute)) {
		t.Errorf("%+v, %s", token, expires)
	}
	if _, err := v.Verify(t.Context(), raw, stranger.leaf); err == nil {
		t.Error("the token is good with another's certificate")
	}

	update := func(change func(*authz.SupplierFacts)) []byte {
		facts := s.facts
		facts.Certificates = slices.Clone(facts.Certificates)
		change(&facts)
		next, err := w.as("registrar").SealSupplier(t.Context(), s.record, facts)
		w.must(err)
		return next
	}
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	record, err := keys.Supplier(s.record)
	w.must(err)
	forged, err := authz.Seal(record.Payload(), softSigner{forger, authz.KeyIDOf(w.hsm.SealKeys[0])})
	w.must(err)
	unknown, err := w.ca.Issue(devpki.Leaf{CommonName: "unknown"})
	w.must(err)
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"a certificate nobody registered", sign(s.record, authn.Thumbprint(unknown.Leaf), scopes, time.Minute), client.ErrSupplierRefused},
		{"another supplier's certificate", sign(s.record, stranger.leaf, scopes, time.Minute), client.ErrSupplierRefused},
		{"no certificate", sign(s.record, [32]byte{}, scopes, time.Minute), client.ErrSupplierRefused},
		{"revoked", sign(update(func(f *authz.SupplierFacts) { f.Certificates[0].RevokedAt = baseTime }), s.leaf, scopes, time.Minute), client.ErrSupplierRefused},
		{"suspended", sign(update(func(f *authz.SupplierFacts) { f.Suspended = true }), s.leaf, scopes, time.Minute), client.ErrSupplierRefused},
		{"forged record", sign(forged, s.leaf, scopes, time.Minute), client.ErrSupplierRefused},
		{"no record", sign(nil, s.leaf, scopes, time.Minute), client.ErrSupplierRefused},
		{"a scope it does not have", sign(s.record, s.leaf, []string{authn.ScopeReadings, "admin"}, time.Minute), client.ErrSupplierRefused},
		{"no scope", sign(s.record, s.leaf, nil, time.Minute), client.ErrRefused},
		{"a scope twice", sign(s.record, s.leaf, []string{authn.ScopeReadings, authn.ScopeReadings}, time.Minute), client.ErrRefused},
		{"too long", sign(s.record, s.leaf, scopes, 301*time.Second), client.ErrRefused},
		{"no lifetime", sign(s.record, s.leaf, scopes, 0), client.ErrRefused},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v", c.name, c.err)
		}
	}
	if _, err := w.raw(w.clientTLS("issuer")).SignToken(t.Context(), &cryptopb.SignTokenRequest{
		SupplierRecord: s.record, Thumbprint: s.leaf[:31], Scopes: scopes, LifetimeSeconds: 60,
	}); reasonOf(err) != cryptopb.ReasonMalformed {
		t.Errorf("a thumbprint of 31 bytes: %v", err)
	}
}
