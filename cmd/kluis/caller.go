package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kluis/cmd/kluis/demo"
	"kluis/conformance"
	"kluis/openapi/client/kluis"
)

// caller says where the API is, and which supplier calls it. These commands
// need nothing else of an installation: they are what any supplier could run.
type caller struct {
	State        string `help:"State folder of a demo. Default: $$KLUIS_STATE." type:"path" placeholder:"DIR" xor:"installation" group:"Where, and as whom"`
	Installation string `help:"How to reach an installation with test metering points (docs/CONFORMANCE.md)." type:"path" placeholder:"FILE" xor:"installation" group:"Where, and as whom"`
	Supplier     string `help:"With --state or --installation: as which supplier, by GLN or name. Default: the first." placeholder:"NAME" group:"Where, and as whom"`

	Gateway string  `help:"Base URL of the API; with the five below, for any other installation." placeholder:"URL" xor:"installation" group:"Where, and as whom"`
	Issuer  string  `help:"Base URL of the token issuer." placeholder:"URL" group:"Where, and as whom"`
	GLN     glnFlag `help:"The supplier's GLN." name:"gln" placeholder:"GLN" group:"Where, and as whom"`
	CA      string  `help:"PEM file: the authority of the grid operator's servers." name:"ca" type:"path" placeholder:"FILE" group:"Where, and as whom"`
	Cert    string  `help:"PEM file: the client certificate." name:"cert" type:"path" placeholder:"FILE" group:"Where, and as whom"`
	Key     string  `help:"PEM file: its private key." name:"key" type:"path" placeholder:"FILE" group:"Where, and as whom"`

	Patience time.Duration `help:"How long to try again what breaks, or is too busy. Default: 2m; 0s: not at all." default:"2m" placeholder:"TIME" group:"Where, and as whom"`
}

func (c *caller) open() (*kluis.Client, error) {
	conf, err := c.config()
	if err != nil {
		return nil, err
	}
	if conf.Patience = c.Patience; c.Patience == 0 {
		conf.Patience = -1
	}
	k, err := kluis.Open(conf)
	if err != nil {
		return nil, usageError{err}
	}
	return k, nil
}

func (c *caller) config() (kluis.Config, error) {
	if c.Gateway != "" {
		for _, f := range [][2]string{{"--issuer", c.Issuer}, {"--ca", c.CA}, {"--cert", c.Cert}, {"--key", c.Key}} {
			if f[1] == "" {
				return kluis.Config{}, usage("--gateway needs %s, too", f[0])
			}
		}
		if c.GLN.IsZero() {
			return kluis.Config{}, usage("--gateway needs --gln, too: the supplier's number is its client id")
		}
		return kluis.Config{Gateway: c.Gateway, Issuer: c.Issuer, ClientID: c.GLN.String(), CAFile: c.CA, CertificateFile: c.Cert, KeyFile: c.Key}, nil
	}
	callers, err := c.callers()
	if err != nil {
		return kluis.Config{}, err
	}
	var names []string
	for _, k := range callers {
		if c.Supplier == "" || c.Supplier == k.GLN || strings.EqualFold(c.Supplier, k.Name) {
			return kluis.Config{Gateway: k.Gateway, Issuer: k.Issuer, ClientID: k.GLN, CAFile: k.CAFile, CertificateFile: k.CertificateFile, KeyFile: k.KeyFile}, nil
		}
		names = append(names, fmt.Sprintf("%s (%q)", k.GLN, k.Name))
	}
	return kluis.Config{}, usage("--supplier: there is none of this GLN or name, but %s", strings.Join(names, ", "))
}

// callers are the suppliers of whom the certificates are at hand.
func (c *caller) callers() ([]demo.Caller, error) {
	state := c.State
	if c.Installation == "" && state == "" {
		state = os.Getenv("KLUIS_STATE")
	}
	switch {
	case c.Installation != "":
		i, err := conformance.LoadInstallation(c.Installation)
		if err != nil {
			return nil, err
		}
		var out []demo.Caller
		for _, s := range conformance.Suppliers() {
			if pair, ok := i.Suppliers[s.Name]; ok {
				out = append(out, demo.Caller{GLN: s.GLN.String(), Name: s.Name, Gateway: i.GatewayURL, Issuer: i.IssuerURL, CAFile: i.CAFile,
					CertificateFile: pair.CertificateFile, KeyFile: pair.KeyFile})
			}
		}
		return out, nil
	case state != "":
		return demo.Callers(filepath.Clean(state))
	}
	return nil, usage("say where the API is: --state DIR (a demo's), --installation FILE, or --gateway URL --issuer URL --gln GLN --ca FILE --cert FILE --key FILE")
}

// apiError is an error of the API, with what one does about it.
type apiError struct {
	error
	code int
}

func (e apiError) Unwrap() error { return e.error }

// ofAPI makes an error of the API one for people.
func ofAPI(err error) error {
	var network net.Error
	var authority x509.UnknownAuthorityError
	var token *kluis.TokenError
	switch p := kluis.AsProblem(err); {
	case err == nil:
		return nil
	case errors.Is(err, kluis.ErrStream):
		return apiError{fmt.Errorf("%w; what was printed is not to be trusted: tell the grid operator", err), exitFindings}
	case errors.Is(err, kluis.ErrBroken):
		return apiError{err, exitUnavailable}
	case p == nil && errors.As(err, &token):
		return apiError{fmt.Errorf("the issuer gives no token: %w; is this the certificate that is registered for this GLN?", err), exitRefused}
	case p == nil && errors.As(err, &authority):
		return apiError{fmt.Errorf("%w: --ca is not the authority of this server", err), exitFailed}
	case p == nil && errors.As(err, &network):
		return apiError{fmt.Errorf("%w: is the address right, and the installation running?", err), exitUnavailable}
	case p == nil:
		return err
	case p.Temporary():
		return apiError{err, exitUnavailable}
	case p.Is(kluis.InvalidParameters):
		return apiError{err, exitUsage}
	case p.Status < 500:
		return apiError{err, exitRefused}
	}
	return apiError{err, exitFailed}
}
