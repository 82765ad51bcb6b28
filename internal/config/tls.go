package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"
)

// ServerTLS is a server that speaks TLS 1.3 only and requires a client
// certificate of CAFile's authorities, valid for client authentication.
func ServerTLS(t TLS) (*tls.Config, error) {
	cert, pool, err := loadTLS(t)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
	}, nil
}

// ClientTLS is a client that presents its certificate and trusts only CAFile.
func ClientTLS(t TLS) (*tls.Config, error) {
	cert, pool, err := loadTLS(t)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		RootCAs:      pool,
	}, nil
}

func loadTLS(t TLS) (tls.Certificate, *x509.CertPool, error) {
	cert, err := loadPair(t)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	pool, err := CertPool(t.CAFile)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("ca_file: %w", err)
	}
	return cert, pool, nil
}

// loadPair reads the certificate and its key.
func loadPair(t TLS) (tls.Certificate, error) {
	certPEM, err := readFile(t.CertificateFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate_file: %w", err)
	}
	keyPEM, err := readPrivate(t.KeyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key_file: %w", err)
	}
	defer clear(keyPEM)
	// X509KeyPair checks that the key belongs to the certificate.
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s with %s: %w", t.CertificateFile, t.KeyFile, err)
	}
	if now := time.Now(); now.After(cert.Leaf.NotAfter) {
		return tls.Certificate{}, fmt.Errorf("%s expired at %s: renew it", t.CertificateFile, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return cert, nil
}

// CertPool reads the CA certificates of a PEM file: at least one, and nothing
// else in it.
func CertPool(path string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	err := eachPEM(path, "CERTIFICATE", func(der []byte) error {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if !c.IsCA {
			return errors.New("is not the certificate of an authority")
		}
		pool.AddCert(c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return pool, nil
}

// PublicKeys reads the ECDSA P-256 public keys of a PEM file, as in
// seal_keys_file: at least one "PUBLIC KEY", and nothing else in it.
func PublicKeys(path string) ([]*ecdsa.PublicKey, error) {
	var keys []*ecdsa.PublicKey
	err := eachPEM(path, "PUBLIC KEY", func(der []byte) error {
		k, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return err
		}
		ec, ok := k.(*ecdsa.PublicKey)
		if !ok || ec.Curve != elliptic.P256() {
			return errors.New("is not an ECDSA P-256 key")
		}
		keys = append(keys, ec)
		return nil
	})
	return keys, err
}

func eachPEM(path, kind string, use func(der []byte) error) error {
	if path == "" {
		return os.ErrNotExist
	}
	rest, err := readFile(path)
	if err != nil {
		return err
	}
	// A damaged block is skipped by pem.Decode: it must not go unnoticed.
	want := bytes.Count(rest, []byte("-----BEGIN"))
	for n := 1; ; n++ {
		var b *pem.Block
		b, rest = pem.Decode(rest)
		if b == nil {
			if n == 1 {
				return fmt.Errorf("%s holds no PEM block %q", path, kind)
			}
			if n != want+1 {
				return fmt.Errorf("%s: %d of its %d PEM blocks cannot be read", path, want+1-n, want)
			}
			return nil
		}
		if b.Type != kind {
			return fmt.Errorf("%s: block %d is %q, not %q", path, n, b.Type, kind)
		}
		if err := use(b.Bytes); err != nil {
			return fmt.Errorf("%s: block %d: %w", path, n, err)
		}
	}
}
