package demo

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/ingest"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devpg"
	"kluis/meter"
)

// consentValidity is how long the demo's consents may be used.
const consentValidity = 3 * 365 * 24 * time.Hour

// facts registers the suppliers and takes the legal steps of every metering
// point, each sealed by a cryptoserver.
func (d *demo) facts(ctx context.Context, operator config.Operator) error {
	if d.progress.Facts {
		return nil
	}
	reg, err := backend.OpenRegistrar(ctx, operator)
	if err != nil {
		return err
	}
	defer reg.Close()
	for _, s := range d.plan.suppliers {
		certFile, _ := d.supplierPair(s)
		cert, err := readCertificate(certFile)
		if err != nil {
			return err
		}
		_, err = reg.ChangeSupplier(ctx, s.gln, func(*authz.Supplier) (authz.SupplierFacts, error) {
			return authz.SupplierFacts{GLN: s.gln, Name: s.name, Scopes: []string{authn.ScopeReadings, authn.ScopeConsents},
				Certificates: []authz.Certificate{{Thumbprint: sha256.Sum256(cert.Raw), NotAfter: cert.NotAfter.UTC()}}}, nil
		})
		if err != nil {
			return err
		}
	}
	portal, err := d.operatorFacts()
	if err != nil {
		return err
	}
	if _, err := reg.ChangeSupplier(ctx, portal.GLN, func(*authz.Supplier) (authz.SupplierFacts, error) { return portal, nil }); err != nil {
		return err
	}
	for _, pt := range d.plan.points {
		_, err := reg.ChangeLegalFile(ctx, pt.ean, func(current *authz.LegalFile) ([]authz.Step, error) {
			return d.steps(pt, current)
		})
		if err != nil {
			return err
		}
	}
	d.say("legal files of %d metering points, %d suppliers", len(d.plan.points), len(d.plan.suppliers))
	d.progress.Facts = true
	return d.save(d.progress)
}

// steps are those that the legal file still lacks. The number of a file's
// version is the number of steps taken, so an interrupted set-up goes on
// where it stopped.
func (d *demo) steps(pt point, current *authz.LegalFile) ([]authz.Step, error) {
	steps := []authz.Step{authz.Register{EAN: pt.ean, Commodity: pt.commodity}}
	for _, o := range pt.occupied {
		steps = append(steps, authz.SetOccupancy{Days: o})
	}
	for _, s := range pt.supply {
		steps = append(steps, authz.SetSupply{Supplier: d.plan.suppliers[s.supplier].gln, Days: s.days})
	}
	for _, o := range pt.optedOut {
		steps = append(steps, authz.SetOptOut{Days: o})
	}
	for i, c := range pt.consents {
		classes := []meter.Class{meter.Intervals}
		id := consentID(pt.ean, i)
		steps = append(steps, authz.GrantConsent{ID: id, Supplier: d.plan.suppliers[c.supplier].gln, Purpose: meter.EnergyManagement,
			Classes: classes, Granularity: c.granularity, Days: c.days,
			ValidUntil: time.Now().Add(consentValidity).UTC().Truncate(time.Second), Evidence: fmt.Sprintf("demo-consent-%d", i+1)})
		if c.revoked {
			steps = append(steps, authz.RevokeConsent{ID: id})
		}
	}
	if current == nil {
		return steps, nil
	}
	if current.Version() > uint64(len(steps)) {
		return nil, nil // somebody took further steps since
	}
	return steps[current.Version():], nil
}

// consentID is a UUID (RFC 9562, version 8) that is the same at every try.
func consentID(ean meter.EAN, n int) (id [16]byte) {
	h := sha256.Sum256(fmt.Appendf(nil, "kluis demo consent %s %d", ean, n))
	copy(id[:], h[:])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

func readCertificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// fillAtOnce homes are stored together: each has a year of readings.
const fillAtOnce = 4

// fill seals and stores the readings of every home up to today, the closing
// register read of today included.
func (d *demo) fill(ctx context.Context, operator config.Operator, today meter.Day) error {
	if d.progress.FilledTo == today.String() {
		return nil
	}
	from := d.plan.first
	if d.progress.FilledTo != "" {
		var err error
		if from, err = meter.ParseDay(d.progress.FilledTo); err != nil {
			return fmt.Errorf("%s: %w", d.progressFile(), err)
		}
	}
	in, err := backend.OpenIngest(ctx, operator)
	if err != nil {
		return err
	}
	defer in.Close()
	var failed error
	total, err := in.Many(ctx, func(yield func(ingest.Point) bool) {
		for _, pt := range d.plan.points {
			if !pt.readings {
				continue
			}
			var p ingest.Point
			if p, failed = d.simulate(pt, from, today); failed != nil || !yield(p) {
				return
			}
		}
	}, ingest.Options{AtOnce: fillAtOnce, Progress: func(blocks, _ int) { d.say("readings: %d blocks sealed", blocks) }})
	if err := errors.Join(failed, err); err != nil {
		return fmt.Errorf("storing readings: %w", err)
	}
	d.say("readings: %d homes from %s up to %s, %d blocks sealed", total.Points, from, today, total.Blocks)
	d.progress.FilledTo = today.String()
	return d.save(d.progress)
}

// simulate lets a home live from the first day on and returns the blocks of
// the days from on.
func (d *demo) simulate(pt point, from, today meter.Day) (ingest.Point, error) {
	out := ingest.Point{EAN: pt.ean}
	reads := meterReads{importLow: 1_204_318, importNormal: 987_605, gas: 734_211}
	if pt.home.solar > 0 {
		reads.exportLow, reads.exportNormal = 210_977, 655_402
	}
	for day := d.plan.first; day <= today; day++ {
		blocks := pt.home.dayOf(d.profile, pt.commodity, day, pt.stored, &reads)
		if day < from {
			continue
		}
		for _, f := range d.profile.Fields(pt.commodity) {
			b, ok := blocks[f.Name]
			if !ok {
				return out, fmt.Errorf("no reading of the field %s", f.Name)
			}
			if day == today && f.Class != meter.Registers {
				continue // not over yet
			}
			out.Blocks = append(out.Blocks, ingest.FieldBlock{Field: f.Code, Block: *b})
		}
	}
	return out, nil
}

// describe collects what the ready file says and writes it.
func (d *demo) describe(ctx context.Context, operator config.Operator, today meter.Day) error {
	reg, err := backend.OpenRegistrar(ctx, operator)
	if err != nil {
		return err
	}
	defer reg.Close()
	r := readyFile{
		GatewayURL: "https://" + d.progress.Gateway, IssuerURL: "https://" + d.progress.Issuer, MetricsURL: "http://" + d.progress.Metrics + "/metrics",
		CAFile: d.operatorCAFile(), Audience: audience, DatabaseURL: d.cluster.URL(devpg.Superuser, "kluis"), State: d.dir, Portal: d.readyPortal(d.progress),
	}
	for _, s := range d.plan.suppliers {
		cert, key := d.supplierPair(s)
		r.Suppliers = append(r.Suppliers, readySupplier{ID: s.gln.String(), Name: s.name, ClientID: s.gln.String(), CertificateFile: cert, KeyFile: key})
	}
	now := time.Now()
	for n, pt := range d.plan.points {
		var file *authz.LegalFile
		_, err := reg.ChangeLegalFile(ctx, pt.ean, func(current *authz.LegalFile) ([]authz.Step, error) {
			file = current
			return nil, nil
		})
		if err != nil {
			return err
		}
		if file == nil {
			return errors.New("a metering point of the demo has no legal file: remove the state folder to start afresh")
		}
		days := meter.DayRange{From: d.plan.first, To: today}
		if !pt.readings {
			days.From = pt.supply[0].days.From
		}
		at := d.plan.residentsOf(n)[0]
		r.MeteringPoints = append(r.MeteringPoints, readyPoint{EAN: pt.ean.String(), Commodity: pt.commodity.String(),
			Address: readyAddress{at.postcode, at.number, at.addition}, Access: access(d.plan, pt, file, d.profile, days, now)})
	}
	if err := d.business(ctx, &r, today); err != nil {
		return err
	}
	d.mu.Lock()
	d.ready = r
	d.told = true
	d.mu.Unlock()
	return d.tell()
}

// retell writes the ready file again when a process was restarted.
func (d *demo) retell() {
	if err := d.tell(); err != nil {
		d.say("ready file: %v", err)
	}
}

func (d *demo) tell() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.told {
		return nil
	}
	d.ready.Cryptoservers = nil
	for _, p := range d.processes {
		switch p.name {
		case "gateway":
			d.ready.GatewayPID = p.PID()
		case "issuer":
			d.ready.IssuerPID = p.PID()
		case custodianName:
			d.ready.CustodianPID = p.PID()
		case auditorName:
			d.ready.AuditorPID = p.PID()
		case portalName:
			d.ready.Portal.PID = p.PID()
		default:
			d.ready.Cryptoservers = append(d.ready.Cryptoservers, readyProcess{
				Address: d.progress.Cryptoserv[len(d.ready.Cryptoservers)], PID: p.PID()})
		}
	}
	d.ready.PostgresPID = d.cluster.PID()
	if d.ReadyFile == "" {
		return nil
	}
	return d.ready.write(d.ReadyFile)
}
