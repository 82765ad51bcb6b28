package demo

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/conformance"
	"kluis/custodian"
	"kluis/ingest"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/meter"
)

// packProgress is what the demo remembers of the conformance pack.
type packProgress struct {
	Seeded  string    `json:"seeded,omitempty"` // the day of seeding, YYYY-MM-DD
	Done    bool      `json:"done,omitempty"`   // all of it is stored
	Settled time.Time `json:"settled,omitzero"` // from when on it is as its cases want it
}

func (l layout) testSupplierPair(s conformance.Supplier) (cert, key string) {
	return l.path("pki", "conformance-"+s.Name+".crt"), l.path("pki", "conformance-"+s.Name+".key")
}

// seedPack stores the conformance pack, once. The case of a damaged block is
// left out: damage is a finding of the audit, and a demo begins without any.
func (d *demo) seedPack(ctx context.Context, operator config.Operator, today meter.Day) error {
	if d.progress.Pack.Done {
		return nil
	}
	if d.progress.Pack.Seeded == "" {
		// Kept before anything is stored: what was begun goes on with the same days.
		d.progress.Pack.Seeded = today.String()
		if err := d.save(d.progress); err != nil {
			return err
		}
	}
	seeded, err := meter.ParseDay(d.progress.Pack.Seeded)
	if err != nil {
		return fmt.Errorf("%s: %w", d.progressFile(), err)
	}
	ca, err := devpki.LoadOrCreateCA(d.path("pki"), "supplier-ca", "")
	if err != nil {
		return err
	}
	pack, settled, err := SeedPack(ctx, operator, seeded, func(s conformance.Supplier) (*x509.Certificate, error) {
		if _, _, err := ca.IssueFiles(d.path("pki"), "conformance-"+s.Name, devpki.Leaf{CommonName: "conformance " + s.Name}); err != nil {
			return nil, err
		}
		certFile, _ := d.testSupplierPair(s)
		return readCertificate(certFile)
	})
	if err != nil {
		return fmt.Errorf("conformance pack: %w", err)
	}
	d.say("conformance pack: %d test metering points, %d cases", len(pack.Points), len(pack.Cases))
	d.progress.Pack.Done, d.progress.Pack.Settled = true, settled
	return d.save(d.progress)
}

// PackOf is the conformance pack of an installation, as it is on the day of its
// seeding.
func PackOf(p *meter.Profile, seeded meter.Day) (*conformance.Pack, error) {
	if p.Country() != "NL" {
		return nil, fmt.Errorf("the conformance pack is of the Dutch market profile, and this one is of %s", p.Country())
	}
	return conformance.New(marketOf(p), seeded, seeded)
}

func marketOf(p *meter.Profile) conformance.Market {
	return conformance.Market{Location: p.Location(), RetentionMonths: p.RetentionMonths()}
}

// SeedPack stores the conformance pack: test suppliers with their certificates,
// legal files, readings, and the erasure of some. It may be called again, with
// the same day, to go on with what was interrupted. The pack is as its cases
// want it from the time returned on: a consent in it must have expired.
func SeedPack(ctx context.Context, operator config.Operator, seeded meter.Day, certificate func(conformance.Supplier) (*x509.Certificate, error)) (*conformance.Pack, time.Time, error) {
	reg, err := backend.OpenRegistrar(ctx, operator)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer reg.Close()
	pack, err := PackOf(reg.Profile, seeded)
	if err != nil {
		return nil, time.Time{}, err
	}
	if err := packFacts(ctx, reg, pack, certificate); err != nil {
		return nil, time.Time{}, err
	}
	settled := conformance.Settled(time.Now())
	if err := packReadings(ctx, operator, pack); err != nil {
		return nil, time.Time{}, err
	}
	return pack, settled, packErasures(ctx, operator, pack)
}

// packTries is how often the steps of a metering point are tried.
const packTries = 3

func packFacts(ctx context.Context, reg *backend.Registrar, pack *conformance.Pack, certificate func(conformance.Supplier) (*x509.Certificate, error)) error {
	for _, s := range pack.Suppliers {
		cert, err := certificate(s)
		if err != nil {
			return err
		}
		_, err = reg.ChangeSupplier(ctx, s.GLN, func(*authz.Supplier) (authz.SupplierFacts, error) {
			return authz.SupplierFacts{GLN: s.GLN, Name: "Conformance " + s.Name, Scopes: s.Scopes,
				Certificates: []authz.Certificate{{Thumbprint: sha256.Sum256(cert.Raw), NotAfter: cert.NotAfter.UTC()}}}, nil
		})
		if err != nil {
			return err
		}
	}
	for i := range pack.Points {
		p := &pack.Points[i]
		for try := 1; ; try++ {
			_, err := reg.ChangeLegalFile(ctx, p.EAN, func(current *authz.LegalFile) ([]authz.Step, error) {
				steps := p.Steps(time.Now())
				if current == nil {
					return steps, nil
				}
				// The number of a file's version is the number of steps taken.
				return steps[min(current.Version(), uint64(len(steps))):], nil
			})
			if err == nil {
				break
			}
			// On a machine that is very slow a consent that is to have expired has
			// done so before it was sealed. Nothing was stored.
			if try == packTries || !errors.Is(err, authz.ErrStep) {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
		}
	}
	return nil
}

func packReadings(ctx context.Context, operator config.Operator, pack *conformance.Pack) error {
	in, err := backend.OpenIngest(ctx, operator)
	if err != nil {
		return err
	}
	defer in.Close()
	first, second := make([]ingest.Point, 0, len(pack.Points)), []ingest.Point{}
	for i := range pack.Points {
		p := &pack.Points[i]
		stored, corrected := p.Blocks(marketOf(in.Profile))
		for into, blocks := range map[*[]ingest.Point][]conformance.Block{&first: stored, &second: corrected} {
			if len(blocks) == 0 {
				continue
			}
			point := ingest.Point{EAN: p.EAN}
			for _, b := range blocks {
				f, ok := in.Profile.Field(b.Field)
				if !ok {
					return fmt.Errorf("the market profile has no field %s", b.Field)
				}
				point.Blocks = append(point.Blocks, ingest.FieldBlock{Field: f.Code, Block: b.Block})
			}
			*into = append(*into, point)
		}
	}
	for _, points := range [][]ingest.Point{first, second} {
		if _, err := in.Days(ctx, points, ingest.Options{}); err != nil {
			return err
		}
	}
	return nil
}

// packErasures erases as an operator does: by an entry of the control feed.
func packErasures(ctx context.Context, operator config.Operator, pack *conformance.Pack) error {
	k, err := backend.OpenCustodian(ctx, operator, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer k.Close()
	for _, p := range pack.Points {
		if p.Erased.Empty() {
			continue
		}
		if _, err := k.Erase(ctx, custodian.KeySelection{EAN: p.EAN, Occupancy: &p.Erased.From}, nil); err != nil {
			return err
		}
	}
	return nil
}

// describePack writes the file that `kluis conformance run` goes by.
func (d *demo) describePack() error {
	seeded, err := meter.ParseDay(d.progress.Pack.Seeded)
	if err != nil {
		return fmt.Errorf("%s: %w", d.progressFile(), err)
	}
	pack, err := PackOf(d.profile, seeded)
	if err != nil {
		return err
	}
	i := conformance.Installation{GatewayURL: "https://" + d.progress.Gateway, IssuerURL: "https://" + d.progress.Issuer,
		CAFile: d.operatorCAFile(), Seeded: d.progress.Pack.Seeded, Settled: d.progress.Pack.Settled, Suppliers: map[string]conformance.Pair{}}
	for _, s := range pack.Suppliers {
		cert, key := d.testSupplierPair(s)
		i.Suppliers[s.Name] = conformance.Pair{CertificateFile: cert, KeyFile: key}
	}
	return i.Write(d.path(conformance.InstallationName))
}
