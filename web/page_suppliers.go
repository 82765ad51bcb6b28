package web

// suppliersRoutes are those of templates/suppliers.html.
func (p *Portal) suppliersRoutes() []route { return nil }
