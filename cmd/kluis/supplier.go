package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/internal/config"
)

type supplierCmd struct {
	Add     supplierAddCmd     `cmd:"" help:"Register a supplier, or add certificates to one."`
	Show    supplierShowCmd    `cmd:"" help:"Show a supplier's record."`
	Revoke  supplierRevokeCmd  `cmd:"" help:"Revoke one of a supplier's certificates; counts from the next request on."`
	Suspend supplierSuspendCmd `cmd:"" help:"Refuse everything a supplier asks, until it is resumed."`
	Resume  supplierResumeCmd  `cmd:"" help:"End a suspension."`
}

type supplierAddCmd struct {
	target
	GLN          glnFlag  `help:"The supplier's GLN (EAN-13)." required:"" name:"gln" placeholder:"GLN"`
	Name         string   `help:"Its name; for a new supplier, or to change it." placeholder:"NAME"`
	Certificate  []string `help:"PEM file of a client certificate it may call with; may be repeated." type:"existingfile" placeholder:"FILE"`
	Scope        []string `help:"Scopes it may be given: readings:read, consents:write (default for a new supplier: readings:read); customer-service for the grid operator's own portal." placeholder:"SCOPE"`
	RevokeOthers bool     `help:"Revoke its other certificates: the end of a rotation."`
}

// Help says more than fits a line.
func (supplierAddCmd) Help() string {
	return `To rotate a certificate: add the new one, let the supplier change over, then revoke the old one.

Example:
  kluis supplier add --state .demo --gln 8712000000011 --name Polderstroom --certificate client.crt`
}

func (c *supplierAddCmd) Run(ctx context.Context, s streams) error {
	if c.RevokeOthers && len(c.Certificate) == 0 {
		return usage("--revoke-others needs a --certificate that stays")
	}
	conf, err := c.load()
	if err != nil {
		return err
	}
	var certs []authz.Certificate
	for _, path := range c.Certificate {
		cert, err := readCertificate(path)
		if err != nil {
			return err
		}
		if err := acceptable(cert, conf.SuppliersCAFile, time.Now()); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, authz.Certificate{Thumbprint: sha256.Sum256(cert.Raw), NotAfter: cert.NotAfter.UTC()})
	}
	return changeSupplier(ctx, s, c.target, c.GLN, func(f *authz.SupplierFacts, isNew bool) error {
		switch {
		case isNew && c.Name == "":
			return usage("the supplier is new: say --name")
		case isNew && len(c.Scope) == 0:
			f.Scopes = []string{"readings:read"}
		}
		if c.Name != "" {
			f.Name = c.Name
		}
		if len(c.Scope) > 0 {
			f.Scopes = slices.Clone(c.Scope)
		}
		now := time.Now()
		for i := range f.Certificates {
			old := &f.Certificates[i]
			given := slices.ContainsFunc(certs, func(n authz.Certificate) bool { return n.Thumbprint == old.Thumbprint })
			switch {
			case given && !old.RevokedAt.IsZero():
				return errors.New("a certificate once revoked stays revoked: have a new one issued")
			case !given && c.RevokeOthers && old.RevokedAt.IsZero():
				old.RevokedAt = now
			}
		}
		for _, n := range certs {
			if !slices.ContainsFunc(f.Certificates, func(o authz.Certificate) bool { return o.Thumbprint == n.Thumbprint }) {
				f.Certificates = append(f.Certificates, n)
			}
		}
		return nil
	})
}

type supplierShowCmd struct {
	target
	GLN glnFlag `help:"The supplier's GLN (EAN-13)." required:"" name:"gln" placeholder:"GLN"`
}

func (c *supplierShowCmd) Run(ctx context.Context, s streams) error {
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		sup, err := r.Supplier(ctx, c.GLN.GLN)
		if err != nil {
			return err
		}
		return printSupplier(s.out, sup, true, c.JSON)
	})
}

type supplierRevokeCmd struct {
	target
	GLN         glnFlag        `help:"The supplier's GLN (EAN-13)." required:"" name:"gln" placeholder:"GLN"`
	Certificate string         `help:"PEM file of the certificate." type:"existingfile" placeholder:"FILE" xor:"which" required:""`
	Thumbprint  thumbprintFlag `help:"SHA-256 of the certificate, as kluis supplier show prints it." placeholder:"HEX" xor:"which" required:""`
}

func (c *supplierRevokeCmd) Run(ctx context.Context, s streams) error {
	sum := c.Thumbprint.sum
	if !c.Thumbprint.set {
		cert, err := readCertificate(c.Certificate)
		if err != nil {
			return err
		}
		sum = sha256.Sum256(cert.Raw)
	}
	return changeSupplier(ctx, s, c.target, c.GLN, func(f *authz.SupplierFacts, isNew bool) error {
		if isNew {
			return backend.ErrUnknownSupplier
		}
		i := slices.IndexFunc(f.Certificates, func(o authz.Certificate) bool { return o.Thumbprint == sum })
		if i < 0 {
			return errors.New("the certificate is not registered for this supplier: see kluis supplier show")
		}
		if f.Certificates[i].RevokedAt.IsZero() {
			f.Certificates[i].RevokedAt = time.Now()
		}
		return nil
	})
}

type supplierSuspendCmd struct {
	target
	GLN glnFlag `help:"The supplier's GLN (EAN-13)." required:"" name:"gln" placeholder:"GLN"`
}

func (c *supplierSuspendCmd) Run(ctx context.Context, s streams) error {
	return suspend(ctx, s, c.target, c.GLN, true)
}

type supplierResumeCmd struct {
	target
	GLN glnFlag `help:"The supplier's GLN (EAN-13)." required:"" name:"gln" placeholder:"GLN"`
}

func (c *supplierResumeCmd) Run(ctx context.Context, s streams) error {
	return suspend(ctx, s, c.target, c.GLN, false)
}

func suspend(ctx context.Context, s streams, t target, gln glnFlag, to bool) error {
	return changeSupplier(ctx, s, t, gln, func(f *authz.SupplierFacts, isNew bool) error {
		if isNew {
			return backend.ErrUnknownSupplier
		}
		f.Suspended = to
		return nil
	})
}

// errSame ends a change that would change nothing.
var errSame = errors.New("nothing to change")

// changeSupplier edits a supplier's facts into the next version of its record;
// the same facts make none.
func changeSupplier(ctx context.Context, s streams, t target, gln glnFlag, edit func(f *authz.SupplierFacts, isNew bool) error) error {
	return withRegistrar(ctx, t, func(r *backend.Registrar) error {
		var same *authz.Supplier
		next, err := r.ChangeSupplier(ctx, gln.GLN, func(current *authz.Supplier) (authz.SupplierFacts, error) {
			f := authz.SupplierFacts{GLN: gln.GLN}
			if current != nil {
				f = factsOf(current)
			}
			if err := edit(&f, current == nil); err != nil {
				return f, err
			}
			if current != nil && equalFacts(f, factsOf(current)) {
				same = current
				return f, errSame
			}
			return f, nil
		})
		if errors.Is(err, errSame) {
			return printSupplier(s.out, same, false, t.JSON)
		}
		if err != nil {
			return err
		}
		return printSupplier(s.out, next, true, t.JSON)
	})
}

func factsOf(s *authz.Supplier) authz.SupplierFacts {
	return authz.SupplierFacts{GLN: s.GLN(), Name: s.Name(), Scopes: s.Scopes(), Suspended: s.Suspended(), Certificates: s.Certificates()}
}

func equalFacts(a, b authz.SupplierFacts) bool {
	slices.Sort(a.Scopes)
	slices.Sort(b.Scopes)
	return a.GLN == b.GLN && a.Name == b.Name && a.Suspended == b.Suspended && slices.Equal(slices.Compact(a.Scopes), b.Scopes) &&
		slices.EqualFunc(a.Certificates, b.Certificates, func(x, y authz.Certificate) bool {
			return x.Thumbprint == y.Thumbprint && x.RevokedAt.Equal(y.RevokedAt)
		})
}

// readCertificate reads the first certificate of a PEM file; those of
// authorities may follow.
func readCertificate(path string) (*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	if bytes.Contains(raw, []byte("PRIVATE KEY-----")) {
		return nil, fmt.Errorf("%s holds a private key: name the certificate's file; the key must not leave the supplier", path)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s is not a PEM file with a certificate", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

// acceptable refuses certificates that the gateway would refuse anyway.
func acceptable(cert *x509.Certificate, caFile string, now time.Time) error {
	switch {
	case cert.IsCA:
		return errors.New("is the certificate of an authority, not of a client")
	case now.After(cert.NotAfter):
		return fmt.Errorf("expired at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	case caFile == "":
		return nil
	}
	pool, err := config.CertPool(caFile)
	if err != nil {
		return fmt.Errorf("suppliers_ca_file: %w", err)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fmt.Errorf("is not a client certificate of the suppliers' CA: %w", err)
	}
	return nil
}
