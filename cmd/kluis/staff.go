package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/cmd/kluis/demo"
	"kluis/meter"
)

type staffCmd struct {
	Token staffTokenCmd `cmd:"" help:"Demo only: be an employee, and get an access token for one errand."`
}

type staffTokenCmd struct {
	State  string   `help:"State folder of the demo. Default: $$KLUIS_STATE." type:"path" placeholder:"DIR"`
	As     string   `help:"Who signs in. Default: demo-employee." default:"demo-employee" placeholder:"NAME"`
	Role   roleFlag `help:"agent, supervisor or auditor. Default: agent." default:"agent" placeholder:"ROLE"`
	EAN    eanFlag  `help:"Metering point (EAN-18); of --view, --readings and --step." name:"ean" placeholder:"EAN"`
	Reason string   `help:"Why, for the record: a ticket, without personal data." required:"" placeholder:"TEXT"`
	JSON   bool     `help:"Print the issuer's whole answer."`

	View     bool   `help:"Errand: consents, who may read what, the access log." xor:"errand"`
	Readings bool   `help:"Errand: values, for the customer on the line; needs --from, --to, --fields." xor:"errand"`
	Step     string `help:"Errand: one step of a consent: register, grant, reject or revoke." placeholder:"STEP" xor:"errand"`

	Find    []string `help:"Errand: the metering points at an address: postcode and house number, separated by a comma." placeholder:"POSTCODE,NUMBER" xor:"errand"`
	Oversee bool     `help:"Errand: suppliers, health, oversight." xor:"errand"`
	Suspend glnFlag  `help:"Errand: suspend a supplier; role supervisor." placeholder:"GLN" xor:"errand"`
	Resume  glnFlag  `help:"Errand: resume a supplier; role supervisor." placeholder:"GLN" xor:"errand"`

	From   dayFlag  `help:"First day." placeholder:"DAY"`
	To     dayFlag  `help:"First day after." placeholder:"DAY"`
	Fields []string `help:"Fields, as the market profile names them." placeholder:"FIELD"`

	Consent  *uuidFlag `help:"The consent's id; not to register." placeholder:"UUID"`
	Evidence string    `help:"Reference to the customer's word; to register and to grant." placeholder:"REF"`

	Supplier    glnFlag        `help:"To register: who may read (GLN)." placeholder:"GLN"`
	Purpose     purposeFlag    `help:"To register: what for." default:"ENERGY_MANAGEMENT" placeholder:"PURPOSE"`
	Class       []classFlag    `help:"To register: registers, intervals; both: repeat or separate by comma." default:"intervals" placeholder:"CLASS"`
	Granularity resolutionFlag `help:"To register: the finest that may be read." default:"PT15M" placeholder:"PERIOD"`
	ValidUntil  string         `help:"To register: when the consent ends: a day (its start) or a time with offset." placeholder:"WHEN"`
}

// Help says more than fits a line.
func (staffTokenCmd) Help() string {
	return `Takes the part of the customer-service portal and of the employee's sign-in: it makes an ID token with the demo's development identity provider, which asks nobody for a password, and exchanges it at the issuer with the portal's certificate. The access token is for this one errand, for five minutes, and is used with the portal's certificate.

Examples:
  kluis staff token --state .demo --ean 871687200000000010 --view --reason ticket-4711
  kluis staff token --state .demo --ean 871687200000000010 --readings --from 2026-01-01 --to 2026-02-01 --fields import_low,import_normal --reason ticket-4711
  kluis staff token --state .demo --ean 871687200000000010 --step revoke --consent 0b8e... --reason ticket-4711
  kluis staff token --state .demo --find 1234AB,7 --reason ticket-4711
  kluis staff token --state .demo --oversee --role auditor --reason ticket-4711
  kluis staff token --state .demo --suspend 8712345600020 --role supervisor --reason ticket-4711

What to do with the token: docs/CONSENT.md, docs/STATEMENT.md.`
}

type roleFlag struct{ authz.Role }

func (f *roleFlag) UnmarshalText(b []byte) (err error) {
	if f.Role, err = authz.ParseRole(string(b)); err != nil {
		err = errors.New("must be agent, supervisor or auditor")
	}
	return err
}

func (c *staffTokenCmd) Run(ctx context.Context, s streams) error {
	if c.State == "" {
		c.State = os.Getenv("KLUIS_STATE")
	}
	if c.State == "" {
		return usage("say which demo: --state DIR")
	}
	portal, err := demo.OpenPortal(c.State)
	if err != nil {
		return err
	}
	errand, err := c.errand(ctx, portal.Profile)
	if err != nil {
		return err
	}
	raw, err := portal.Token(ctx, demo.Employee{Name: c.As, Role: c.Role.Role}, errand)
	if err != nil {
		return err
	}
	fmt.Fprintln(s.err, "Signed in at the demo's development identity provider, which asks nobody for a password.")
	if c.JSON {
		return printJSON(s.out, raw)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return fmt.Errorf("the issuer's answer: %w", err)
	}
	_, err = fmt.Fprintln(s.out, answer.AccessToken)
	return err
}

func (c *staffTokenCmd) errand(ctx context.Context, p *meter.Profile) (authz.Errand, error) {
	e := authz.Errand{EAN: c.EAN.EAN, Reason: c.Reason}
	if ofPoint := c.View || c.Readings || c.Step != ""; ofPoint && c.EAN.IsZero() {
		return e, usage("say of which metering point: --ean")
	} else if !ofPoint && !c.EAN.IsZero() {
		return e, usage("--ean is for --view, --readings and --step")
	}
	switch {
	case c.View:
		e.Kind = authz.ErrandView
	case c.Readings:
		e.Kind = authz.ErrandReadings
		if !c.From.set || !c.To.set || c.To.Day <= c.From.Day || len(c.Fields) == 0 {
			return e, usage("--readings needs --from, a later --to, and --fields")
		}
		e.Days = meter.DayRange{From: c.From.Day, To: c.To.Day}
		for _, name := range c.Fields {
			f, ok := p.Field(name)
			if !ok {
				return e, usage("--fields: the market profile has no field of one of these names")
			}
			e.Fields = append(e.Fields, f.Code)
		}
		slices.Sort(e.Fields)
		e.Fields = slices.Compact(e.Fields)
	case c.Step != "":
		e.Kind = authz.ErrandStep
		return e, c.step(ctx, p, &e)
	case c.Find != nil:
		return e, c.find(p, &e)
	case c.Oversee:
		e.Kind = authz.ErrandOversee
	case !c.Suspend.IsZero():
		e.Kind, e.Supplier, e.Suspend = authz.ErrandSupplier, c.Suspend.GLN, true
	case !c.Resume.IsZero():
		e.Kind, e.Supplier = authz.ErrandSupplier, c.Resume.GLN
	default:
		return e, usage("say the errand: --view, --readings, --step, --find, --oversee, --suspend or --resume")
	}
	return e, nil
}

func (c *staffTokenCmd) find(p *meter.Profile, e *authz.Errand) (err error) {
	e.Kind = authz.ErrandFind
	if len(c.Find) != 2 {
		return usage("--find takes a postcode and a house number: 1234AB,7")
	}
	if e.Postcode, err = p.ParsePostcode(c.Find[0]); err != nil {
		return usage("--find: %w", err)
	}
	if e.HouseNumber, err = meter.ParseHouseNumber(c.Find[1]); err != nil {
		return usage("--find: %w", err)
	}
	return nil
}

// step fills in what the customer is told: the scope of the consent.
func (c *staffTokenCmd) step(ctx context.Context, p *meter.Profile, e *authz.Errand) (err error) {
	if e.Action, err = authz.ParseConsentAction(c.Step); err != nil || e.Action == authz.ActionRequest {
		return usage("--step must be register, grant, reject or revoke")
	}
	if e.Action == authz.ActionRegister || e.Action == authz.ActionGrant {
		if e.Evidence = c.Evidence; c.Evidence == "" {
			return usage("--step %s needs --evidence", c.Step)
		}
	}
	if e.Action == authz.ActionRegister {
		return c.register(p, e)
	}
	if c.Consent == nil {
		return usage("--step %s needs --consent", c.Step)
	}
	e.ConsentID = c.Consent.UUID
	return withRegistrar(ctx, target{State: c.State}, func(r *backend.Registrar) error {
		found := errors.New("the metering point has no such consent")
		// Nothing is changed: the current file is looked at.
		_, err := r.ChangeLegalFile(ctx, e.EAN, func(f *authz.LegalFile) ([]authz.Step, error) {
			if f == nil {
				return nil, errors.New("no such metering point")
			}
			for _, k := range f.Consents() {
				if k.ID == e.ConsentID {
					e.Scope, found = k.ScopeDigest(e.EAN), nil
				}
			}
			return nil, nil
		})
		return errors.Join(err, found)
	})
}

func (c *staffTokenCmd) register(p *meter.Profile, e *authz.Errand) error {
	if c.Supplier.IsZero() || !c.From.set || c.ValidUntil == "" {
		return usage("--step register needs --supplier, --from and --valid-until")
	}
	until, err := instant(c.ValidUntil, p.Location())
	if err != nil {
		return usage("--valid-until: %w", err)
	}
	scope := authz.ConsentScope{Supplier: c.Supplier.GLN, Purpose: c.Purpose.Purpose, Granularity: c.Granularity.Resolution,
		Days: meter.DayRange{From: c.From.Day, To: c.To.until()}, ValidUntil: until, Evidence: c.Evidence}
	for _, class := range c.Class {
		scope.Classes = append(scope.Classes, class.Class)
	}
	e.Scope = scope.Digest(e.EAN)
	return nil
}
