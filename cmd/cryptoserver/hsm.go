package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"kluis/internal/hsm"
)

type hsmCmd struct {
	Check hsmCheckCmd `cmd:"" help:"Test a PKCS#11 module and one of its tokens against what Kluis needs, and print a report. It leaves nothing on the token; run one at a time on a token. Exit codes: 0 fit, 1 unfit or interrupted, 2 it cannot begin: wrong usage, no such module or token, a PIN that was not accepted."`
}

type hsmCheckCmd struct {
	Module    string `required:"" placeholder:"PATH" help:"PKCS#11 module of the HSM."`
	Label     string `required:"" placeholder:"LABEL" help:"Label of the token (partition)."`
	PINFile   string `name:"pin-file" required:"" placeholder:"FILE" help:"File with the user PIN, for its owner alone. It is presented a few times, and no other PIN ever."`
	SOPINFile string `name:"so-pin-file" placeholder:"FILE" help:"File with the security officer's PIN, to test the rotate role."`
	JSON      bool   `name:"json" help:"Print the report as JSON."`
	Quick     bool   `help:"Leave out what takes long: the number of data keys and the module's memory."`
}

// errUnfit: the report says why.
var errUnfit = errors.New("the token is unfit for at least one role")

// Run prints the report. What it is doing goes to stderr.
func (c *hsmCheckCmd) Run(ctx context.Context) error {
	o := hsm.CheckOptions{Module: c.Module, Token: hsm.Token{Label: c.Label, PINFile: c.PINFile}, SOPINFile: c.SOPINFile, Quick: c.Quick}
	if !c.JSON {
		o.Progress = func(requirement string) { fmt.Fprintf(os.Stderr, "%s ...\n", requirement) }
	}
	report, err := hsm.Check(ctx, o)
	switch {
	case errors.Is(err, hsm.ErrCannotCheck):
		return exitError{err, exitUsage}
	case err != nil:
		return err
	}
	if c.JSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		err = e.Encode(report)
	} else {
		err = report.WriteText(os.Stdout)
	}
	if err == nil && !report.Fit {
		err = errUnfit
	}
	return err
}
