package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"kluis/authz"
	cryptoclient "kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/meter"
)

// The cryptoservers are measured by themselves too: their gRPC service, asked
// as a gateway asks, beside the PKCS#11 loop over the very same blocks. The
// facts are made for it by the services that make them in earnest, and are in
// no database: a cryptoserver knows none.

// batch is one call of Open, and the same blocks for the loop.
type batch struct {
	name   string
	bytes  float64 // of plaintext in a block, in the mean
	blocks int
	open   cryptoclient.OpenRequest
	keys   []envelope.KeyRecord
	items  []hsmItem
}

// A block is a register read of 22 bytes, a day of hours of 133 or a day of
// quarter-hours of 493; batches mix them so that the mean is what is asked for.
type unitShape struct {
	registers, intervals []meter.FieldCode
	resolution           meter.Resolution
	days                 int
	closing              int // registers that have a closing read too
}

var (
	registerFields = []meter.FieldCode{1, 2, 3, 4}
	intervalFields = []meter.FieldCode{6, 7}
	// 62 and 500 blocks of 64 bytes in the mean, and of 250.
	small62  = unitShape{registerFields[:3], intervalFields, meter.PT1H, 12, 2}
	small500 = unitShape{registerFields[:3], intervalFields, meter.PT1H, 100, 0}
	large62  = unitShape{registerFields[:2], intervalFields, meter.PT15M, 15, 2}
	large500 = unitShape{registerFields[:2], intervalFields, meter.PT15M, 125, 0}
)

var batchShapes = []struct {
	name   string
	blocks int
	units  []unitShape
}{
	{"62 blocks of 64 bytes", 62, []unitShape{small62}},
	{"124 blocks of 64 bytes", 124, []unitShape{small62, small62}},
	{"1,000 blocks of 64 bytes", 1000, []unitShape{small500, small500}},
	{"62 blocks of 250 bytes", 62, []unitShape{large62}},
	{"124 blocks of 250 bytes", 124, []unitShape{large62, large62}},
	{"1,000 blocks of 250 bytes", 1000, []unitShape{large500, large500}},
}

// service is the operator's services, and a supplier with its metering points.
type service struct {
	pool      config.Cryptoservers // as the gateway's
	gateway   *tls.Config
	issuer    *cryptoclient.Client
	registrar *cryptoclient.Client
	ingest    *cryptoclient.Client
	custodian *cryptoclient.Client // of the first server
	profile   *meter.Profile

	leaf    [32]byte
	gln     meter.GLN
	record  []byte
	token   string
	end     time.Time
	nextEAN int
	batches []batch
	rewrap  []envelope.KeyRecord
}

func (w *world) newService(ctx context.Context, profile *meter.Profile) (_ *service, err error) {
	s := &service{profile: profile}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	gateway, err1 := config.Load[config.Gateway](filepath.Join(w.state, "gateway.yaml"))
	issuer, err2 := config.Load[config.IssuerProcess](filepath.Join(w.state, "issuer.yaml"))
	operator, err3 := config.Load[config.Operator](filepath.Join(w.state, "kluis.yaml"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	s.pool = gateway.Cryptoservers
	if s.gateway, err = config.ClientTLS(gateway.Cryptoservers.TLS); err != nil {
		return nil, err
	}
	operator.Custodian.Addresses = operator.Custodian.Addresses[:1]
	for _, c := range []struct {
		conf config.Cryptoservers
		to   **cryptoclient.Client
	}{{issuer.Cryptoservers, &s.issuer}, {operator.Registrar, &s.registrar}, {operator.Ingest, &s.ingest}, {operator.Custodian, &s.custodian}} {
		conf, err := config.ClientTLS(c.conf.TLS)
		if err != nil {
			return nil, err
		}
		if *c.to, err = cryptoclient.New(cryptoclient.Config{Addresses: c.conf.Addresses, TLS: conf}); err != nil {
			return nil, err
		}
	}
	if err := s.newSupplier(ctx, w.ready.Suppliers[0].CertificateFile, w.ready.Suppliers[0].KeyFile); err != nil {
		return nil, fmt.Errorf("a supplier for the benchmark: %w", err)
	}
	for _, shape := range batchShapes {
		b, err := s.newBatch(ctx, shape.name, shape.units)
		if err == nil && len(b.items) != shape.blocks {
			err = fmt.Errorf("%d blocks", len(b.items))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", shape.name, err)
		}
		s.batches = append(s.batches, b)
	}
	if s.rewrap, err = s.mintMany(ctx, rewrapKeys); err != nil {
		return nil, fmt.Errorf("keys to rewrap: %w", err)
	}
	return s, nil
}

// rewrapKeys is how many data keys are rewrapped at a time.
const rewrapKeys = 500

// mintMany makes data keys of ten months and both classes.
func (s *service) mintMany(ctx context.Context, n int) ([]envelope.KeyRecord, error) {
	var specs []envelope.KeySpec
	month := meter.DayOf(time.Now(), s.profile.Location()).Month()
	for ean := (meter.EAN{}); len(specs) < n; {
		i := len(specs) % 20
		if i == 0 {
			var err error
			if ean, err = s.newEAN(); err != nil {
				return nil, err
			}
		}
		specs = append(specs, envelope.KeySpec{EAN: ean, Class: []meter.Class{meter.Registers, meter.Intervals}[i%2], Month: month - meter.Month(i/2)})
	}
	return s.ingest.Mint(ctx, specs)
}

func (s *service) newEAN() (meter.EAN, error) {
	s.nextEAN++
	return meter.ParseEAN(withCheckDigit(fmt.Sprintf("87199%012d", s.nextEAN)))
}

func (s *service) close() error {
	var errs []error
	for _, c := range []*cryptoclient.Client{s.issuer, s.registrar, s.ingest, s.custodian} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// newSupplier is nobody in the demo's database; its certificate is lent.
func (s *service) newSupplier(ctx context.Context, certFile, keyFile string) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	s.leaf = authn.Thumbprint(cert.Leaf)
	if s.gln, err = meter.ParseGLN(withCheckDigit("871999900000")); err != nil {
		return err
	}
	s.record, err = s.registrar.SealSupplier(ctx, nil, authz.SupplierFacts{
		GLN: s.gln, Name: "Benchmark", Scopes: []string{authn.ScopeReadings},
		Certificates: []authz.Certificate{{Thumbprint: s.leaf, NotAfter: cert.Leaf.NotAfter}},
	})
	return err
}

// withCheckDigit completes a GS1 number.
func withCheckDigit(digits string) string {
	sum := 0
	for i := range len(digits) {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 0 {
			d *= 3
		}
		sum += d
	}
	return digits + string(rune('0'+(10-sum%10)%10))
}

// authorise gets a token that lives for at least two minutes more, as the
// issuer would, and puts it into every batch.
func (s *service) authorise(ctx context.Context) (err error) {
	if time.Until(s.end) > 2*time.Minute {
		return nil
	}
	s.token, s.end, err = s.issuer.SignToken(ctx, s.record, s.leaf, []string{authn.ScopeReadings}, 5*time.Minute)
	for i := range s.batches {
		s.batches[i].open.AccessToken = s.token
	}
	return err
}

func (s *service) newBatch(ctx context.Context, name string, shapes []unitShape) (batch, error) {
	b := batch{name: name, open: cryptoclient.OpenRequest{SupplierRecord: s.record, Profile: s.profile.Digest()}}
	for _, shape := range shapes {
		u, err := s.newUnit(ctx, shape)
		if err != nil {
			return b, err
		}
		b.open.Units = append(b.open.Units, u)
		first := len(b.keys)
		b.keys = append(b.keys, u.Keys...)
		for _, row := range u.Blocks {
			c, err := envelope.ParseCiphertext(row.Ciphertext)
			if err != nil {
				return b, err
			}
			id := envelope.BlockID{EAN: u.Request.EAN, Field: row.Field, Day: row.Day, Resolution: row.Resolution, Version: row.Version, KeyID: c.KeyID}
			b.items = append(b.items, hsmItem{Key: first + row.Key, IV: c.IV, AAD: id.AppendAAD(nil), Data: c.Body})
			b.bytes += float64(len(c.Body) - envelope.TagSize)
		}
	}
	b.blocks = len(b.items)
	b.bytes /= float64(b.blocks)
	return b, nil
}

// newUnit makes a metering point of the supplier's, with consent and readings.
func (s *service) newUnit(ctx context.Context, shape unitShape) (u cryptoclient.Unit, err error) {
	ean, err := s.newEAN()
	if err != nil {
		return u, err
	}
	now := time.Now()
	days := meter.DayRange{From: (meter.DayOf(now, s.profile.Location()).Month() - 6).First()}
	days.To = days.From + meter.Day(shape.days)
	always := meter.DayRange{From: days.From - 31, To: meter.MaxDay}
	for _, step := range []authz.Step{
		authz.Register{EAN: ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: always},
		authz.SetSupply{Supplier: s.gln, Days: always},
		authz.GrantConsent{ID: [16]byte{1}, Supplier: s.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT15M, Days: always, ValidUntil: now.AddDate(1, 0, 0), Evidence: "benchmark"},
	} {
		if u.LegalFile, err = s.registrar.SealStep(ctx, u.LegalFile, step); err != nil {
			return u, err
		}
	}
	u.InteractionID = [16]byte{15: byte(s.nextEAN)}
	u.Request = authz.Request{EAN: ean, Purpose: meter.EnergyManagement, Days: days, Fields: slices.Concat(shape.registers, shape.intervals)}

	var blocks []envelope.PlainBlock
	var specs []envelope.KeySpec
	add := func(class meter.Class, field meter.FieldCode, b meter.Block) {
		spec := envelope.KeySpec{EAN: ean, Class: class, Month: b.Day.Month()}
		key := slices.Index(specs, spec)
		if key < 0 {
			key, specs = len(specs), append(specs, spec)
		}
		blocks = append(blocks, envelope.PlainBlock{Field: field, Version: 1, Key: key, Block: b})
	}
	for i, f := range shape.registers {
		last := days.To
		if i < shape.closing {
			last++
		}
		for d := days.From; d < last; d++ {
			add(meter.Registers, f, meter.Block{Day: d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{meter.Value(int64(d) * 9876)}})
		}
	}
	for _, f := range shape.intervals {
		for d := days.From; d < days.To; d++ {
			b := meter.Block{Day: d, Resolution: shape.resolution, Start: meter.Null}
			for i := range meter.Slots(d, shape.resolution, s.profile.Location()) {
				b.Values = append(b.Values, meter.Value(50+(int(d)*31+i*17)%400)) // Wh
			}
			add(meter.Intervals, f, b)
		}
	}
	if u.Keys, err = s.ingest.Mint(ctx, specs); err != nil {
		return u, err
	}
	sealed, err := s.ingest.Seal(ctx, ean, u.Keys, blocks)
	if err != nil {
		return u, err
	}
	for i, b := range blocks {
		u.Blocks = append(u.Blocks, envelope.SealedBlock{Field: b.Field, Day: b.Block.Day, Resolution: b.Block.Resolution,
			Version: b.Version, Key: b.Key, Ciphertext: bytes.Clone(sealed[i].Ciphertext)})
	}
	return u, nil
}

// connect makes n clients of the first servers of the pool, each with
// connections of its own, as gateways have.
func (s *service) connect(servers, n int) (cs []*cryptoclient.Client, disconnect func() error, err error) {
	disconnect = func() error {
		var errs []error
		for _, c := range cs {
			errs = append(errs, c.Close())
		}
		return errors.Join(errs...)
	}
	for range n {
		c, err := cryptoclient.New(cryptoclient.Config{Addresses: s.pool.Addresses[:servers], TLS: s.gateway})
		if err != nil {
			return nil, nil, errors.Join(err, disconnect())
		}
		cs = append(cs, c)
	}
	return cs, disconnect, nil
}

// call opens a batch, and checks that everything was opened.
func (b *batch) call(ctx context.Context, c *cryptoclient.Client) error {
	got, err := c.Open(ctx, b.open)
	if err != nil {
		return err
	}
	for i := range got {
		switch u := &got[i]; {
		case u.Err != nil:
			return u.Err
		case len(u.Faults) > 0 || len(u.Series) < len(b.open.Units[i].Request.Fields):
			return fmt.Errorf("%d blocks not opened, %d series", len(u.Faults), len(u.Series))
		}
	}
	return nil
}
