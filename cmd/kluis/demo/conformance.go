package demo

import (
	"context"
	"crypto/sha256"
	"encoding/json"
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
	Seeded string `json:"seeded,omitempty"` // the day of seeding, YYYY-MM-DD
	Done   bool   `json:"done,omitempty"`   // all of it is stored
}

func (l layout) testSupplierPair(s conformance.Supplier) (cert, key string) {
	return l.path("pki", "conformance-"+s.Name+".crt"), l.path("pki", "conformance-"+s.Name+".key")
}

// seedPack stores the conformance pack, once: its test suppliers, legal files
// and readings. The case of a damaged block is left out: damage is a finding of
// the audit, and a demo begins without any.
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
	market := conformance.Market{Location: d.profile.Location(), RetentionMonths: d.profile.RetentionMonths()}
	pack, err := conformance.New(market, seeded, seeded)
	if err != nil {
		return err
	}
	if err := d.packFacts(ctx, operator, pack); err != nil {
		return fmt.Errorf("conformance pack: %w", err)
	}
	d.packSettled = conformance.Settled(time.Now())
	if err := d.packReadings(ctx, operator, pack, market); err != nil {
		return fmt.Errorf("conformance pack: %w", err)
	}
	d.say("conformance pack: %d test metering points, %d cases", len(pack.Points), len(pack.Cases))
	d.progress.Pack.Done = true
	return d.save(d.progress)
}

func (d *demo) packFacts(ctx context.Context, operator config.Operator, pack *conformance.Pack) error {
	reg, err := backend.OpenRegistrar(ctx, operator)
	if err != nil {
		return err
	}
	defer reg.Close()
	ca, err := devpki.LoadOrCreateCA(d.path("pki"), "supplier-ca", "")
	if err != nil {
		return err
	}
	for _, s := range pack.Suppliers {
		if _, _, err := ca.IssueFiles(d.path("pki"), "conformance-"+s.Name, devpki.Leaf{CommonName: "conformance " + s.Name}); err != nil {
			return err
		}
		certFile, _ := d.testSupplierPair(s)
		cert, err := readCertificate(certFile)
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
		_, err := reg.ChangeLegalFile(ctx, p.EAN, func(current *authz.LegalFile) ([]authz.Step, error) {
			steps := p.Steps(time.Now())
			if current == nil {
				return steps, nil
			}
			// The number of a file's version is the number of steps taken.
			return steps[min(current.Version(), uint64(len(steps))):], nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

func (d *demo) packReadings(ctx context.Context, operator config.Operator, pack *conformance.Pack, market conformance.Market) error {
	in, err := backend.OpenIngest(ctx, operator)
	if err != nil {
		return err
	}
	defer in.Close()
	first, second := make([]ingest.Point, 0, len(pack.Points)), []ingest.Point{}
	for i := range pack.Points {
		p := &pack.Points[i]
		stored, corrected := p.Blocks(market)
		for into, blocks := range map[*[]ingest.Point][]conformance.Block{&first: stored, &second: corrected} {
			if len(blocks) == 0 {
				continue
			}
			point := ingest.Point{EAN: p.EAN}
			for _, b := range blocks {
				f, ok := d.profile.Field(b.Field)
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
	return d.packErasures(ctx, operator, pack)
}

// packErasures erases as an operator does: by an entry of the control feed.
func (d *demo) packErasures(ctx context.Context, operator config.Operator, pack *conformance.Pack) error {
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

// describePack writes the file that `kluis conformance run` goes by, once the
// pack is as its cases want it: a consent in it must have expired.
func (d *demo) describePack(ctx context.Context) error {
	select {
	case <-time.After(time.Until(d.packSettled)):
	case <-ctx.Done():
		return ctx.Err()
	}
	seeded, err := meter.ParseDay(d.progress.Pack.Seeded)
	if err != nil {
		return fmt.Errorf("%s: %w", d.progressFile(), err)
	}
	pack, err := conformance.New(conformance.Market{Location: d.profile.Location(), RetentionMonths: d.profile.RetentionMonths()}, seeded, seeded)
	if err != nil {
		return err
	}
	i := conformance.Installation{GatewayURL: "https://" + d.progress.Gateway, IssuerURL: "https://" + d.progress.Issuer,
		CAFile: d.operatorCAFile(), Seeded: d.progress.Pack.Seeded, Suppliers: map[string]conformance.Pair{}}
	for _, s := range pack.Suppliers {
		cert, key := d.testSupplierPair(s)
		i.Suppliers[s.Name] = conformance.Pair{CertificateFile: cert, KeyFile: key}
	}
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.path(conformance.InstallationName), append(b, '\n'), 0o644)
}
