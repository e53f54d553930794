// What stands beside roles or an order that should not be relied on, in the words of the package.
import { h } from '../dom.js';

// The sentences on one layer at the cursor; in red what is said of roles, and of an order that roles follow from.
export const doubts = (table, layer, which = ['doubt_roles', 'doubt_order']) =>
  which
    .map((what) => [what, table.doubt(what, table.time.at, layer)])
    .filter(([, text]) => text)
    .map(([what, text]) => {
      const mild = what === 'doubt_order' && table.byContribution(table.time.at, layer);
      return h('p', { class: mild ? 'doubt mild' : 'doubt', 'data-doubt': what }, text);
    });

// Which views show roles of one layer, and which its order.
const ROLES_IN = ['units', 'transitions', 'entropy', 'unit'];
const ORDER_IN = ['units', 'ablation', 'unit'];

// Above a view of one layer: what is doubtful in it. Its roles are faded.
export function warn(ctx, view, panel) {
  const { table, layer } = ctx;
  const shown = { doubt_roles: ROLES_IN.includes(view), doubt_order: ORDER_IN.includes(view) };
  const found = doubts(table, layer.index).filter((text) => shown[text.dataset.doubt]);
  panel.classList.toggle('doubtful', shown.doubt_roles && !!table.doubt('doubt_roles', table.time.at, layer.index));
  return found;
}

// Whether the criterion tells the units of the layer in sight apart.
export const ordered = (ctx, table = ctx.table) => !table.doubt('doubt_order', table.time.at, ctx.layer.index);
